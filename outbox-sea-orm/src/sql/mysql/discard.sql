-- Parameters: ids in hexadecimal as a JSON array; how many. Removes dead letters: all of them or none.
-- /*! OF t */ is read by MySQL, which refuses to lock a JSON_TABLE.
DELETE m
  FROM (SELECT good.seq, COUNT(*) OVER () AS n_good
          FROM (SELECT t.seq
                  FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, id CHAR(32) PATH '$')) AS i
                  STRAIGHT_JOIN `outbox` AS t FORCE INDEX (`outbox_id`) ON t.id = UNHEX(i.id)
                 WHERE t.state = 2
                   FOR UPDATE /*!80000 OF t */) AS good) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
 WHERE p.n_good = ?
