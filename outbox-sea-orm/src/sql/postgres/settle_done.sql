-- $1 numbers, sorted so that rows are locked in one order everywhere; $2 the tokens that occur. For first tokens only:
-- a row is claimed once under its number unless its lease expires, so at most one of them can be its own, and a join
-- of pairs, which costs a third more, is not needed. One row: how many leases were good and, unless all were, their
-- numbers and tokens.
WITH done AS (DELETE FROM "outbox" WHERE seq = ANY ($1::bigint[]) AND state = 0 AND lease = ANY ($2::uuid[])
              RETURNING seq, lease)
SELECT count(*),
       CASE WHEN count(*) < cardinality($1) THEN (SELECT array_agg(seq) FROM done) END,
       CASE WHEN count(*) < cardinality($1) THEN (SELECT array_agg(lease) FROM done) END
  FROM done
