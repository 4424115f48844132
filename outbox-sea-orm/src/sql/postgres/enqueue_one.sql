-- $1 id, $2 topic, $3 key, $4 payload, $5 headers, $6 delay in microseconds. As enqueue, for one draft: without the arrays
-- the server does a tenth less for the whole transaction.
INSERT INTO "outbox" (id, topic, key, payload, headers, state, available_at)
VALUES ($1, $2, $3, $4, $5::text::jsonb,
        CASE WHEN $6::bigint > 0 THEN 1 ELSE 0 END,
        CASE WHEN $6::bigint > 0 THEN clock_timestamp() + $6::bigint * interval '1 microsecond' END)
