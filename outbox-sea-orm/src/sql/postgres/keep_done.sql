-- As settle_done, for a table that keeps what is delivered. Parameters and answer are the same. The token stays in the
-- row, where it means nothing any more, because RETURNING tells the new values only. now() is the start of this
-- statement: one value for all rows makes the entries of outbox_done small. The row leaves outbox_ready, so this is no
-- heap-only update.
WITH done AS (UPDATE "outbox" SET state = 3, done_at = now()
               WHERE seq = ANY ($1::bigint[]) AND state = 0
                 AND ((seq, lease) IN (SELECT * FROM unnest($1::bigint[], $2::uuid[]))) IS TRUE
              RETURNING seq, lease)
SELECT count(*),
       CASE WHEN count(*) < cardinality($1) THEN (SELECT array_agg(seq) FROM done) END,
       CASE WHEN count(*) < cardinality($1) THEN (SELECT array_agg(lease) FROM done) END
  FROM done
