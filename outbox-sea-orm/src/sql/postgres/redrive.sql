-- $1 ids, $2 whether rows with a key keep their number. Dead letters become ready again, otherwise as new arrivals in
-- the order of the ids. On a partitioned table, where an id is taken only as long as its message is to be delivered, the id may
-- be in use again, or that of several dead letters: the first comes back when it is free.
UPDATE "outbox" AS m
   SET state = 0, seq = CASE WHEN $2 AND m.key IS NOT NULL THEN m.seq ELSE d.fresh END, attempts = 0, dead_at = NULL, lease = NULL, leased_until = NULL, available_at = clock_timestamp()
  FROM (SELECT i.id, nextval((SELECT pg_get_serial_sequence('"outbox"', 'seq'))::regclass) AS fresh
          FROM (SELECT * FROM unnest($1::uuid[]) WITH ORDINALITY AS u (id, position) ORDER BY position) AS i) AS d
 WHERE m.id = d.id AND m.state = 2
   AND NOT EXISTS (SELECT FROM "outbox" AS p WHERE p.id = m.id AND p.state IN (0, 1) OFFSET 0)
   AND NOT EXISTS (SELECT FROM "outbox" AS e WHERE e.id = m.id AND e.state = 2 AND e.seq < m.seq OFFSET 0)
RETURNING m.id
