-- As redrive, for an ordered table whose keys go on behind a dead letter: the messages draw new numbers and so come last of their
-- keys. An UPDATE cannot draw a number; an INSERT does before it finds that the id is there, and keeps it. It counts each row twice.
-- What is inserted besides is never stored: the rows are locked.
INSERT INTO `outbox` (id, topic, payload, headers, place, due, due_since)
SELECT p.id, '', '', '{}', p.fresh, p.fresh, p.fresh
  FROM (SELECT good.*, COUNT(*) OVER () AS n_good
          FROM (SELECT t.id, i.n, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 + i.n - 1 AS fresh
                  FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, id CHAR(32) PATH '$')) AS i
                  STRAIGHT_JOIN `outbox` AS t FORCE INDEX (`outbox_id`) ON t.id = UNHEX(i.id)
                 WHERE t.state = 2
                   /*!80017 FOR UPDATE OF t */ /*M!100600 FOR UPDATE */) AS good) AS p
 WHERE p.n_good = ?
 ORDER BY p.n
ON DUPLICATE KEY UPDATE
  `outbox`.seq = VALUES(seq), `outbox`.state = 0, `outbox`.place = IF(`outbox`.place = 0, 0, VALUES(place)), `outbox`.due = VALUES(due),
  `outbox`.due_since = VALUES(due_since), `outbox`.attempts = 0, `outbox`.dead_at = NULL
