-- As redrive_matching, with the new numbers of redrive_behind.
INSERT INTO `outbox` (id, topic, payload, headers, place, due, due_since)
SELECT p.id, '', '', '{}', p.fresh, p.fresh, p.fresh
  FROM (SELECT t.id, t.seq, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 + ROW_NUMBER() OVER (ORDER BY t.seq) - 1 AS fresh
          FROM (SELECT seq, id
                  FROM `outbox` FORCE INDEX (`outbox_agenda`)
                 WHERE state = 2
   AND (? IS NULL OR topic = ?) AND (? IS NULL OR `key` = ?) AND (? IS NULL OR INSTR(last_error, ?) > 0)
   AND (? IS NULL OR dead_at <= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND)
   AND (? IS NULL OR dead_at >= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND)
                 ORDER BY due
                 LIMIT ?
                   FOR UPDATE SKIP LOCKED) AS t) AS p
 ORDER BY p.seq
ON DUPLICATE KEY UPDATE
  `outbox`.seq = VALUES(seq), `outbox`.state = 0, `outbox`.place = IF(`outbox`.place = 0, 0, VALUES(place)), `outbox`.due = VALUES(due),
  `outbox`.due_since = VALUES(due_since), `outbox`.attempts = 0, `outbox`.dead_at = NULL
