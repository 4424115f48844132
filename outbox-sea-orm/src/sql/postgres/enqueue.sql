-- $1 ids, $2 topics, $3 keys, $4 whether there is a key, $5 payloads, $6 headers, $7 delays in microseconds.
-- Arrays keep one prepared statement for every number of drafts. No RETURNING and no conflict target: a producer
-- needs INSERT only. A row fewer than drafts means that an id was there.
INSERT INTO "outbox" (id, topic, key, payload, headers, state, available_at)
SELECT d.id, d.topic, CASE WHEN d.has_key THEN d.key END, d.payload, d.headers::jsonb,
       CASE WHEN d.delay > 0 THEN 1 ELSE 0 END,
       CASE WHEN d.delay > 0 THEN clock_timestamp() + d.delay * interval '1 microsecond' END
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::boolean[], $5::bytea[], $6::text[], $7::bigint[])
       AS d (id, topic, key, has_key, payload, headers, delay)
ON CONFLICT DO NOTHING
