-- Parameters: ids in hexadecimal as a JSON array, at most 1,000; how many. Dead letters become ready again, as new
-- arrivals in the order of the ids: all of them or none.
-- /*! OF t */ is read by MySQL, which refuses to lock a JSON_TABLE.
UPDATE (SELECT good.*, COUNT(*) OVER () AS n_good
          FROM (SELECT t.seq, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 + i.n - 1 AS fresh
                  FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, id CHAR(32) PATH '$')) AS i
                  STRAIGHT_JOIN `outbox` AS t FORCE INDEX (`outbox_id`) ON t.id = UNHEX(i.id)
                 WHERE t.state = 2
                   FOR UPDATE /*!80000 OF t */) AS good) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.state = 0, m.place = IF(m.place = 0, 0, p.fresh), m.due = p.fresh, m.due_since = p.fresh, m.attempts = 0, m.dead_at = NULL
 WHERE p.n_good = ?
