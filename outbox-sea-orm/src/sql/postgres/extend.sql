-- $1 numbers, $2 tokens, sorted by number; $3 lease in microseconds. A heap-only update. Answers as settle_done.
WITH extended AS (UPDATE "outbox" AS m SET leased_until = clock_timestamp() + $3::bigint * interval '1 microsecond'
                    FROM unnest($1::bigint[], $2::uuid[]) AS i (seq, token)
                   WHERE m.state = 0 AND m.seq = i.seq AND m.lease = i.token
                  RETURNING i.seq, i.token)
SELECT count(*),
       CASE WHEN count(*) < cardinality($1) THEN (SELECT array_agg(seq) FROM extended) END,
       CASE WHEN count(*) < cardinality($1) THEN (SELECT array_agg(token) FROM extended) END
  FROM extended
