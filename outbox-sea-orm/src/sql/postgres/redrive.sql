-- $1 ids, $2 whether rows with a key keep their number. Dead letters become ready again, otherwise as new arrivals in
-- the order of the ids.
UPDATE "outbox" AS m
   SET state = 0, seq = CASE WHEN $2 AND m.key IS NOT NULL THEN m.seq ELSE d.fresh END, attempts = 0, dead_at = NULL, lease = NULL, leased_until = NULL, available_at = clock_timestamp()
  FROM (SELECT i.id, nextval((SELECT pg_get_serial_sequence('"outbox"', 'seq'))::regclass) AS fresh
          FROM (SELECT * FROM unnest($1::uuid[]) WITH ORDINALITY AS u (id, position) ORDER BY position) AS i) AS d
 WHERE m.id = d.id AND m.state = 2
RETURNING m.id
