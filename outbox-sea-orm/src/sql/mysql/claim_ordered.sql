-- Parameters: max_attempts; [[number, turn, place], …] as JSON; how many without a key come first; whether all topics, the topics;
-- how many without a key at most; whether a dead letter blocks its key, max_attempts again; limit, max_bytes, token, lease in microseconds.
-- Takes of the messages that turns.sql has found those that it can lock: of each key a run up to the first that it cannot (a
-- row's place in its run is then not its number among the locked ones), and where a dead letter blocks, up to the first that is
-- out of attempts. docs/decisions/020 says why nothing slips in between. /*!…*/ is read by MySQL, /*M!…*/ by MariaDB.
UPDATE (SELECT CAST(? AS SIGNED) AS max_attempts) AS c
  STRAIGHT_JOIN (SELECT cut.seq
          FROM (SELECT run.seq, ROW_NUMBER() OVER (ORDER BY run.part, run.n) AS number,
                       SUM(run.bytes) OVER (ORDER BY run.part, run.n ROWS UNBOUNDED PRECEDING) AS bytes
                  FROM (SELECT locked.*, ROW_NUMBER() OVER (PARTITION BY locked.turn ORDER BY locked.place) AS got,
                               COALESCE(MAX(locked.attempts) OVER (PARTITION BY locked.turn ORDER BY locked.place
                                                                   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS worst
                          FROM ((SELECT 1 AS part, i.n, i.turn, i.place, t.seq, t.attempts, LENGTH(t.payload) AS bytes
                                   FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, seq BIGINT PATH '$[0]', turn BIGINT PATH '$[1]', place BIGINT PATH '$[2]')) AS i
                                   STRAIGHT_JOIN `outbox` AS t FORCE INDEX (PRIMARY) ON t.seq = i.seq
                                  WHERE t.state = 0
                                    /*!80017 FOR UPDATE OF t SKIP LOCKED */ /*M!100600 FOR UPDATE SKIP LOCKED */)
                                UNION ALL
                                (SELECT IF(loose.n <= ?, 0, 2), loose.n, -loose.seq, 1, loose.seq, loose.attempts, loose.bytes
                                   FROM (SELECT k.*, ROW_NUMBER() OVER (ORDER BY k.place, k.seq) AS n
                                           FROM (SELECT seq, place, attempts, LENGTH(payload) AS bytes
                                                   FROM `outbox` FORCE INDEX (`outbox_keys`)
                                                  WHERE state = 0 AND `key` IS NULL AND (? OR topic IN (?))
                                                  ORDER BY place, seq
                                                  LIMIT ?
                                                    FOR UPDATE SKIP LOCKED) AS k) AS loose)) AS locked) AS run
                 WHERE run.got = run.place AND (NOT ? OR run.worst < ?)) AS cut
         WHERE cut.number <= ? AND (cut.bytes <= ? OR cut.number = 1)) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.state = IF(m.attempts < c.max_attempts, 4, 2),
       m.lease = IF(m.attempts < c.max_attempts, ?, NULL),
       m.due = IF(m.attempts < c.max_attempts, LAST_INSERT_ID((TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + ?) * 1000), m.seq),
       m.dead_at = IF(m.attempts < c.max_attempts, NULL, UTC_TIMESTAMP(6)),
       m.last_error = IF(m.attempts < c.max_attempts, m.last_error, CONCAT('attempt limit ', c.max_attempts, ' reached')),
       m.fence = m.fence + 1,
       m.attempts = IF(m.attempts < c.max_attempts, m.attempts + 1, m.attempts)
