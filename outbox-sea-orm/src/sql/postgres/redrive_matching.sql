-- The filter: $1 topic, $2 key, $3 part of the error, $4 least and $5 greatest age in microseconds, each may be NULL;
-- $6 limit, $7 whether rows with a key keep their number. As redrive, in the order of the numbers. Index: outbox_dead.
UPDATE "outbox" AS m
   SET state = 0, seq = CASE WHEN $7 AND m.key IS NOT NULL THEN m.seq ELSE d.fresh END, attempts = 0, dead_at = NULL, lease = NULL, leased_until = NULL, available_at = clock_timestamp()
  FROM (SELECT p.ctid, nextval((SELECT pg_get_serial_sequence('"outbox"', 'seq'))::regclass) AS fresh
          FROM (SELECT ctid FROM "outbox" AS c
                 WHERE state = 2
                   AND ($1::text IS NULL OR topic = $1) AND ($2::text IS NULL OR key = $2)
                   AND ($3::text IS NULL OR strpos(last_error, $3) > 0)
                   AND ($4::bigint IS NULL OR dead_at <= clock_timestamp() - $4::bigint * interval '1 microsecond')
                   AND ($5::bigint IS NULL OR dead_at >= clock_timestamp() - $5::bigint * interval '1 microsecond')
                   AND NOT EXISTS (SELECT FROM "outbox" AS p WHERE p.id = c.id AND p.state IN (0, 1) OFFSET 0)
                   AND NOT EXISTS (SELECT FROM "outbox" AS e WHERE e.id = c.id AND e.state = 2 AND e.seq < c.seq OFFSET 0)
                 ORDER BY seq
                 LIMIT $6
                   FOR UPDATE SKIP LOCKED) AS p) AS d
 WHERE m.ctid = d.ctid AND m.state = 2
