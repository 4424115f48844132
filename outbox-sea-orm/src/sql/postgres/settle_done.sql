-- $1 numbers, $2 tokens, sorted by number so that rows are locked in one order everywhere. Returns the positions
-- (from 1) of the leases that were lost, usually none.
WITH input AS (SELECT * FROM unnest($1::bigint[], $2::uuid[]) WITH ORDINALITY AS i (seq, token, position)),
     done AS (DELETE FROM "outbox" AS m USING input AS i
               WHERE m.state = 0 AND m.seq = i.seq AND m.lease = i.token
              RETURNING i.position)
SELECT position FROM input WHERE position NOT IN (SELECT position FROM done)
