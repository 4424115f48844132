-- $1 limit, $2 token, $3 lease in microseconds, $4 max_attempts, $5 topics or NULL, $6 max_bytes, $7 mark.
-- Claims ready rows above the mark, in order, as heap-only updates. The inner LIMIT locks what it returns and skips
-- what others hold; the window then cuts at max_bytes but never the first row. Index: outbox_ready. RETURNING has
-- no order: the caller sorts by seq.
UPDATE "outbox" AS m
   SET attempts = CASE WHEN m.attempts < $4 THEN m.attempts + 1 ELSE m.attempts END,
       fence = m.fence + 1,
       lease = CASE WHEN m.attempts < $4 THEN $2::uuid END,
       leased_until = CASE WHEN m.attempts < $4 THEN clock_timestamp() + $3::bigint * interval '1 microsecond' END,
       state = CASE WHEN m.attempts < $4 THEN 0 ELSE 2 END,
       dead_at = CASE WHEN m.attempts < $4 THEN NULL ELSE clock_timestamp() END,
       last_error = CASE WHEN m.attempts < $4 THEN m.last_error ELSE 'attempt limit ' || $4::integer || ' reached' END
 WHERE m.state = 0
   AND m.ctid = ANY (ARRAY(
       SELECT cut.ctid
         FROM (SELECT picked.ctid, row_number() OVER running AS place, sum(picked.bytes) OVER running AS bytes
                 FROM (SELECT ctid, seq, octet_length(payload) AS bytes
                         FROM "outbox"
                        WHERE state = 0 AND lease IS NULL AND seq > $7
                          AND ($5::text[] IS NULL OR topic = ANY ($5::text[]))
                        ORDER BY seq
                        LIMIT $1
                          FOR UPDATE SKIP LOCKED) AS picked
               WINDOW running AS (ORDER BY picked.seq ROWS UNBOUNDED PRECEDING)) AS cut
        WHERE cut.bytes <= $6 OR cut.place = 1))
RETURNING m.seq, m.id, m.topic, m.key, m.payload, m.headers::text,
          CASE WHEN m.created_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN m.created_at END,
          m.attempts, m.fence, m.state
