-- Parameters: [[number, token in hexadecimal, outcome (1 retry, 2 dead, 3 release), delay in microseconds, error], …] as
-- JSON, sorted by number, at most 1,000; how many. Changes all of them or none, as settle_done. What is released
-- comes as a new arrival, in the order that it had.
-- /*! OF t */ is read by MySQL, which refuses to lock a JSON_TABLE.
UPDATE (SELECT good.*, COUNT(*) OVER () AS n_good,
               TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000
                 + ROW_NUMBER() OVER (PARTITION BY good.outcome ORDER BY good.place, good.topic, good.seq) - 1 AS fresh
          FROM (SELECT t.seq, t.place, t.topic, i.outcome, i.delay, i.error
                  FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, seq BIGINT PATH '$[0]', token CHAR(32) PATH '$[1]',
                         outcome INT PATH '$[2]', delay BIGINT PATH '$[3]',
                         error TEXT CHARACTER SET utf8mb4 PATH '$[4]')) AS i
                  STRAIGHT_JOIN `outbox` AS t FORCE INDEX (PRIMARY) ON t.seq = i.seq
                 WHERE t.state = 4 AND t.lease = UNHEX(i.token)
                   FOR UPDATE /*!80000 OF t */) AS good) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.history = IF(p.outcome = 3, m.history, JSON_ARRAY_APPEND(IF(JSON_LENGTH(m.history) >= 10, JSON_REMOVE(m.history, '$[0]'), COALESCE(m.history, '[]')), '$',
         JSON_OBJECT('attempt', m.attempts, 'at', DATE_FORMAT(UTC_TIMESTAMP(6), '%Y-%m-%dT%H:%i:%s.%fZ'), 'error', LEFT(p.error, 200)))),
       m.state = ELT(p.outcome, 1, 2, 0),
       m.place = IF(p.outcome = 3 AND m.place <> 0, p.fresh, m.place),
       m.due = CASE p.outcome WHEN 1 THEN (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + p.delay) * 1000 WHEN 2 THEN m.seq ELSE p.fresh END,
       m.due_since = IF(p.outcome = 1, (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + p.delay) * 1000, m.due_since),
       m.attempts = IF(p.outcome = 3, GREATEST(m.attempts - 1, 0), m.attempts),
       m.last_error = IF(p.outcome = 3, m.last_error, p.error),
       m.dead_at = IF(p.outcome = 2, UTC_TIMESTAMP(6), NULL),
       m.lease = NULL
 WHERE p.n_good = ?
