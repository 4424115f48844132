-- The filter, each value twice and each may be NULL: topic, key, part of the error, least and greatest age in microseconds;
-- then limit, at most 1,000. As redrive, in the order of the numbers.
UPDATE (SELECT t.seq, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 + ROW_NUMBER() OVER (ORDER BY t.seq) - 1 AS fresh
          FROM (SELECT seq
                  FROM `outbox` FORCE INDEX (`outbox_agenda`)
                 WHERE state = 2
   AND (? IS NULL OR topic = ?) AND (? IS NULL OR `key` = ?) AND (? IS NULL OR INSTR(last_error, ?) > 0)
   AND (? IS NULL OR dead_at <= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND)
   AND (? IS NULL OR dead_at >= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND)
                 ORDER BY due
                 LIMIT ?
                   FOR UPDATE SKIP LOCKED) AS t) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.state = 0, m.place = IF(m.place = 0, 0, p.fresh), m.due = p.fresh, m.due_since = p.fresh, m.attempts = 0, m.dead_at = NULL
