-- $1 numbers, $2 tokens, sorted by number; $3 lease in microseconds. Returns the positions (from 1) of the leases
-- that were lost. A heap-only update.
WITH input AS (SELECT * FROM unnest($1::bigint[], $2::uuid[]) WITH ORDINALITY AS i (seq, token, position)),
     extended AS (UPDATE "outbox" AS m
                     SET leased_until = clock_timestamp() + $3::bigint * interval '1 microsecond'
                    FROM input AS i
                   WHERE m.state = 0 AND m.seq = i.seq AND m.lease = i.token
                  RETURNING i.position)
SELECT position FROM input WHERE position NOT IN (SELECT position FROM extended)
