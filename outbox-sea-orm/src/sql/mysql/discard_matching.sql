-- The filter, each value twice and each may be NULL: topic, key, part of the error, least and greatest age in microseconds;
-- then limit. Index: outbox_agenda.
DELETE m
  FROM (SELECT seq
          FROM `outbox` FORCE INDEX (`outbox_agenda`)
         WHERE state = 2
   AND (? IS NULL OR topic = ?) AND (? IS NULL OR `key` = ?) AND (? IS NULL OR INSTR(last_error, ?) > 0)
   AND (? IS NULL OR dead_at <= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND)
   AND (? IS NULL OR dead_at >= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND)
         ORDER BY due
         LIMIT ?
           FOR UPDATE SKIP LOCKED) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
