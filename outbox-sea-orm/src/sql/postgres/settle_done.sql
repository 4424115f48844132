-- $1 numbers, sorted so that rows are locked in one order everywhere; $2 their tokens. IS TRUE keeps the pairs a hash that
-- each row is looked up in; a join of them costs a third more. One row: how many leases were good and, unless all
-- were, their numbers and tokens.
WITH done AS (DELETE FROM "outbox" WHERE seq = ANY ($1::bigint[]) AND state = 0
                 AND ((seq, lease) IN (SELECT * FROM unnest($1::bigint[], $2::uuid[]))) IS TRUE
              RETURNING seq, lease)
SELECT count(*),
       CASE WHEN count(*) < cardinality($1) THEN (SELECT array_agg(seq) FROM done) END,
       CASE WHEN count(*) < cardinality($1) THEN (SELECT array_agg(lease) FROM done) END
  FROM done
