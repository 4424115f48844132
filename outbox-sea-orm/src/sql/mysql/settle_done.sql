-- Parameters: [[number, token in hexadecimal], …] as JSON, sorted by number, so that rows are locked in one order
-- everywhere; how many. Deletes all of them or, unless all leases are good, none: the affected rows are the answer, and
-- held.sql says which are good.
-- /*! OF t */ is read by MySQL, which refuses to lock a JSON_TABLE.
DELETE m
  FROM (SELECT good.seq, COUNT(*) OVER () AS n_good
          FROM (SELECT t.seq
                  FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, seq BIGINT PATH '$[0]', token CHAR(32) PATH '$[1]')) AS i
                  STRAIGHT_JOIN `outbox` AS t FORCE INDEX (PRIMARY) ON t.seq = i.seq
                 WHERE t.state = 4 AND t.lease = UNHEX(i.token)
                   FOR UPDATE /*!80000 OF t */) AS good) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
 WHERE p.n_good = ?
