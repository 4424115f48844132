-- Parameters: max_attempts, whether all topics, the topics, limit, max_bytes, token, lease in microseconds.
-- The innermost SELECT walks ready rows along the index and locks what it returns. FORCE INDEX because a sort would lock
-- every candidate, STRAIGHT_JOIN because a scan of m would lock, and wait for, every row. The window cuts at max_bytes
-- but never the first row. Assignments may see those before them: attempts comes last. The OK packet brings the end of
-- the leases as the last insert id: claimed.sql finds them by it.
UPDATE (SELECT CAST(? AS SIGNED) AS max_attempts) AS c
  STRAIGHT_JOIN (SELECT cut.seq
          FROM (SELECT picked.seq, ROW_NUMBER() OVER (ORDER BY picked.due, picked.topic, picked.seq) AS place,
                       SUM(picked.bytes) OVER (ORDER BY picked.due, picked.topic, picked.seq ROWS UNBOUNDED PRECEDING) AS bytes
                  FROM (SELECT seq, due, topic, LENGTH(payload) AS bytes
                          FROM `outbox` FORCE INDEX (`outbox_agenda`)
                         WHERE state = 0 AND (? OR topic IN (?))
                         ORDER BY due, topic, seq
                         LIMIT ?
                           FOR UPDATE SKIP LOCKED) AS picked) AS cut
         WHERE cut.bytes <= ? OR cut.place = 1) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.state = IF(m.attempts < c.max_attempts, 4, 2),
       m.lease = IF(m.attempts < c.max_attempts, ?, NULL),
       m.due = IF(m.attempts < c.max_attempts, LAST_INSERT_ID((TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + ?) * 1000), m.seq),
       m.dead_at = IF(m.attempts < c.max_attempts, NULL, UTC_TIMESTAMP(6)),
       m.last_error = IF(m.attempts < c.max_attempts, m.last_error, CONCAT('attempt limit ', c.max_attempts, ' reached')),
       m.fence = m.fence + 1,
       m.attempts = IF(m.attempts < c.max_attempts, m.attempts + 1, m.attempts)
