-- Parameters: lease in microseconds; numbers and tokens as in settle_done; how many. Extends all of them or none.
-- /*! OF t */ is read by MySQL, which refuses to lock a JSON_TABLE.
UPDATE (SELECT CAST(? AS SIGNED) AS length) AS c
  STRAIGHT_JOIN (SELECT good.seq, COUNT(*) OVER () AS n_good
          FROM (SELECT t.seq
                  FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, seq BIGINT PATH '$[0]', token CHAR(32) PATH '$[1]')) AS i
                  STRAIGHT_JOIN `outbox` AS t FORCE INDEX (PRIMARY) ON t.seq = i.seq
                 WHERE t.state = 4 AND t.lease = UNHEX(i.token)
                   FOR UPDATE /*!80000 OF t */) AS good) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.due = (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + c.length) * 1000
 WHERE p.n_good = ?
