-- $1 limit, $2 token, $3 lease in microseconds, $4 max_attempts, $5 topics or NULL, $6 max_bytes.
-- Claims messages whose lease expired, apart from all others: one of them may have killed its process. As many as
-- the first one's attempts allow (outbox_core::recovery_group) and of as many attempts. The row keeps its seq.
WITH head AS MATERIALIZED (
  SELECT attempts FROM "outbox"
   WHERE state = 0 AND lease IS NOT NULL AND leased_until <= clock_timestamp() AND attempts < $4
     AND ($5::text[] IS NULL OR topic = ANY ($5::text[]))
   ORDER BY seq LIMIT 1)
UPDATE "outbox" AS m
   SET attempts = m.attempts + 1, fence = m.fence + 1, lease = $2::uuid,
       leased_until = clock_timestamp() + $3::bigint * interval '1 microsecond',
       history = (CASE WHEN jsonb_array_length(m.history) >= 10 THEN m.history - 0 ELSE coalesce(m.history, '[]') END)
                 || jsonb_build_object('attempt', m.attempts, 'at', m.leased_until, 'error', 'lease expired')
 WHERE m.state = 0
   AND m.ctid = ANY (ARRAY(
       SELECT cut.ctid
         FROM (SELECT picked.ctid, row_number() OVER running AS place, sum(picked.bytes) OVER running AS bytes
                 FROM (SELECT ctid, seq, octet_length(payload) AS bytes
                         FROM "outbox"
                        WHERE state = 0 AND lease IS NOT NULL AND leased_until <= clock_timestamp()
                          AND attempts = (SELECT attempts FROM head)
                          AND ($5::text[] IS NULL OR topic = ANY ($5::text[]))
                        ORDER BY seq
                        LIMIT (SELECT least($1::bigint, power(8, least($4::integer - attempts - 1, 4))::bigint) FROM head)
                          FOR UPDATE SKIP LOCKED) AS picked
               WINDOW running AS (ORDER BY picked.seq ROWS UNBOUNDED PRECEDING)) AS cut
        WHERE cut.bytes <= $6 OR cut.place = 1))
RETURNING m.seq, m.id, m.topic, m.key, m.payload, m.headers::text,
          CASE WHEN m.created_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN m.created_at END,
          m.attempts, m.fence, m.state
