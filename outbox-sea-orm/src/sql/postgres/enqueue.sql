-- $1 ids, $2 topics, $3 keys, $4 whether there is no key, $5 all payloads one behind the other (one value is cheaper to send
-- than an array), $6 where each begins, from 1, $7 its length, $8 headers, $9 delays in microseconds. An array that would
-- say the same of every draft is empty: no key ($3), a key ($4), no delay ($9). One topic ($2) or the same headers ($8)
-- for all are sent once.
-- Arrays keep one prepared statement for every number of drafts. No RETURNING: a producer needs INSERT only.
INSERT INTO "outbox" (id, topic, key, payload, headers, state, available_at)
SELECT d.id, coalesce(d.topic, ($2::text[])[1]), CASE WHEN d.is_keyless THEN NULL ELSE d.key END, substring($5::bytea FROM d.start FOR d.length),
       coalesce(d.headers, ($8::text[])[1])::jsonb,
       CASE WHEN d.delay > 0 THEN 1 ELSE 0 END,
       CASE WHEN d.delay > 0 THEN clock_timestamp() + d.delay * interval '1 microsecond' END
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::boolean[], $6::integer[], $7::integer[], $8::text[], $9::bigint[])
       AS d (id, topic, key, is_keyless, start, length, headers, delay)
