-- $1 ids, $2 topics, $3 keys, $4 whether there is no key, $5 payloads, $6 headers, $7 delays in microseconds. An array
-- that would say the same of every draft is empty: no key ($3), a key ($4), no delay ($7).
-- Arrays keep one prepared statement for every number of drafts. No RETURNING: a producer needs INSERT only.
INSERT INTO "outbox" (id, topic, key, payload, headers, state, available_at)
SELECT d.id, d.topic, CASE WHEN d.is_keyless THEN NULL ELSE d.key END, d.payload, d.headers::jsonb,
       CASE WHEN d.delay > 0 THEN 1 ELSE 0 END,
       CASE WHEN d.delay > 0 THEN clock_timestamp() + d.delay * interval '1 microsecond' END
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::boolean[], $5::bytea[], $6::text[], $7::bigint[])
       AS d (id, topic, key, is_keyless, payload, headers, delay)
