-- $1 numbers, $2 tokens, sorted by number so that rows are locked in one order everywhere. One row: how many
-- leases were good and, unless all were, their numbers and tokens.
WITH done AS (DELETE FROM "outbox" AS m USING unnest($1::bigint[], $2::uuid[]) AS i (seq, token)
               WHERE m.state = 0 AND m.seq = i.seq AND m.lease = i.token
              RETURNING i.seq, i.token)
SELECT count(*),
       CASE WHEN count(*) < cardinality($1) THEN array_agg(seq) END,
       CASE WHEN count(*) < cardinality($1) THEN array_agg(token) END
  FROM done
