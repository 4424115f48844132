-- As recover, for an ordered table: $7 says whether a dead letter blocks its key. A message is recovered when every
-- earlier one of its key that is still to be delivered is recovered with it; the others wait, under the lease that has
-- expired. The rows are changed by number: one that was changed since the snapshot is locked in its new version.
WITH head AS MATERIALIZED (
  SELECT attempts FROM "outbox" AS c
   WHERE state = 0 AND lease IS NOT NULL AND leased_until <= clock_timestamp() AND attempts < $4
     AND ($5::text[] IS NULL OR topic = ANY ($5::text[]))
     AND (key IS NULL
          OR NOT EXISTS (SELECT FROM "outbox" AS e WHERE e.state = 0 AND e.seq > 0 AND e.key = c.key AND e.seq < c.seq)
         AND NOT EXISTS (SELECT FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = c.key AND p.state = 1 AND p.seq < c.seq)
         AND NOT ($7 AND EXISTS (SELECT FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = c.key AND d.state = 2 AND d.seq < c.seq)))
   ORDER BY seq LIMIT 1),
picked AS MATERIALIZED (
  SELECT seq, key, octet_length(payload) AS bytes
    FROM "outbox" AS c
   WHERE state = 0 AND lease IS NOT NULL AND leased_until <= clock_timestamp()
     AND attempts = (SELECT attempts FROM head)
     AND ($5::text[] IS NULL OR topic = ANY ($5::text[]))
     AND (key IS NULL
          OR NOT EXISTS (SELECT FROM "outbox" AS e
                          WHERE e.state = 0 AND e.seq > 0 AND e.key = c.key AND e.seq < c.seq
                            AND (e.lease IS NULL OR e.leased_until > clock_timestamp() OR e.attempts <> (SELECT attempts FROM head)
                                 OR $5::text[] IS NOT NULL AND e.topic <> ALL ($5::text[])))
         AND NOT EXISTS (SELECT FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = c.key AND p.state = 1 AND p.seq < c.seq)
         AND NOT ($7 AND EXISTS (SELECT FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = c.key AND d.state = 2 AND d.seq < c.seq)))
   ORDER BY seq
   LIMIT (SELECT least($1::bigint, power(8, least($4::integer - attempts - 1, 4))::bigint) FROM head)
     FOR UPDATE SKIP LOCKED),
-- As many earlier rows as this claim itself has locked, and no more.
own AS (
  SELECT seq, bytes
    FROM (SELECT *, row_number() OVER (PARTITION BY key ORDER BY seq) AS place FROM picked) AS p
   WHERE key IS NULL
      OR NOT EXISTS (SELECT FROM "outbox" AS e WHERE e.state = 0 AND e.seq > 0 AND e.key = p.key AND e.seq < p.seq OFFSET p.place - 1)),
cut AS (
  SELECT seq, row_number() OVER running AS place, sum(bytes) OVER running AS bytes
    FROM own
  WINDOW running AS (ORDER BY seq ROWS UNBOUNDED PRECEDING))
UPDATE "outbox" AS m
   SET attempts = m.attempts + 1, fence = m.fence + 1, lease = $2::uuid,
       leased_until = clock_timestamp() + $3::bigint * interval '1 microsecond',
       history = (CASE WHEN jsonb_array_length(m.history) >= 10 THEN m.history - 0 ELSE coalesce(m.history, '[]') END)
                 || jsonb_build_object('attempt', m.attempts, 'at', m.leased_until, 'error', 'lease expired')
 WHERE m.state = 0 AND m.seq = ANY (ARRAY(SELECT seq FROM cut WHERE cut.bytes <= $6 OR cut.place = 1))
RETURNING m.seq, m.id, m.topic, m.key, m.payload, m.headers::text,
          CASE WHEN m.created_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN m.created_at END,
          m.attempts, m.fence, m.state
