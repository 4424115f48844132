-- As enqueue, for ids that may be there already: a row fewer than drafts means that one was, and the transaction stays
-- usable. Without a conflict target, which would need SELECT. Costs a third more than enqueue: each row is announced
-- to concurrent inserts of the same id and confirmed.
INSERT INTO "outbox" (id, topic, key, payload, headers, state, available_at)
SELECT d.id, coalesce(d.topic, ($2::text[])[1]), CASE WHEN d.is_keyless THEN NULL ELSE d.key END, substring($5::bytea FROM d.start FOR d.length),
       coalesce(d.headers, ($8::text[])[1])::jsonb,
       CASE WHEN d.delay > 0 THEN 1 ELSE 0 END,
       CASE WHEN d.delay > 0 THEN clock_timestamp() + d.delay * interval '1 microsecond' END
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::boolean[], $6::integer[], $7::integer[], $8::text[], $9::bigint[])
       AS d (id, topic, key, is_keyless, start, length, headers, delay)
ON CONFLICT DO NOTHING
