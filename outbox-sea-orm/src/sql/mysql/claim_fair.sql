-- Parameters: max_attempts; numbers as a JSON array, limit; max_bytes, token, lease in microseconds. As claim, of the rows that
-- lanes.sql has found, in the order of the array: the first limit of them that it can lock. There is no ORDER BY, which would lock
-- all of them first. /*!…*/ is read by MySQL, /*M!…*/ by MariaDB.
UPDATE (SELECT CAST(? AS SIGNED) AS max_attempts) AS c
  STRAIGHT_JOIN (SELECT cut.seq
          FROM (SELECT picked.seq, ROW_NUMBER() OVER (ORDER BY picked.n) AS place,
                       SUM(picked.bytes) OVER (ORDER BY picked.n ROWS UNBOUNDED PRECEDING) AS bytes
                  FROM (SELECT i.n, t.seq, LENGTH(t.payload) AS bytes
                          FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, seq BIGINT PATH '$')) AS i
                          STRAIGHT_JOIN `outbox` AS t FORCE INDEX (PRIMARY) ON t.seq = i.seq
                         WHERE t.state = 0
                         LIMIT ?
                           /*!80017 FOR UPDATE OF t SKIP LOCKED */ /*M!100600 FOR UPDATE SKIP LOCKED */) AS picked) AS cut
         WHERE cut.bytes <= ? OR cut.place = 1) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.state = IF(m.attempts < c.max_attempts, 4, 2),
       m.lease = IF(m.attempts < c.max_attempts, ?, NULL),
       m.due = IF(m.attempts < c.max_attempts, LAST_INSERT_ID((TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + ?) * 1000), m.seq),
       m.dead_at = IF(m.attempts < c.max_attempts, NULL, UTC_TIMESTAMP(6)),
       m.last_error = IF(m.attempts < c.max_attempts, m.last_error, CONCAT('attempt limit ', c.max_attempts, ' reached')),
       m.fence = m.fence + 1,
       m.attempts = IF(m.attempts < c.max_attempts, m.attempts + 1, m.attempts)
