-- $1 numbers, $2 tokens, $3 outcomes (0 done, 1 retry, 2 dead, 3 release, 4 done and kept), $4 delays in microseconds, $5 errors;
-- sorted by number; $6 whether rows with a key keep their number. Answers as settle_done. A release draws a new number
-- otherwise, in this statement: the marks of claimers rely on it.
WITH input AS (SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::smallint[], $4::bigint[], $5::text[])
                 WITH ORDINALITY AS i (seq, token, outcome, delay, error, position)),
     kept AS (SELECT o.*, CASE o.outcome WHEN 3 THEN nextval((SELECT pg_get_serial_sequence('"outbox"', 'seq'))::regclass) ELSE o.seq END AS fresh
                FROM (SELECT * FROM input WHERE outcome <> 0 ORDER BY position) AS o),
     done AS (DELETE FROM "outbox" AS m USING input AS i
               WHERE i.outcome = 0 AND m.state = 0 AND m.seq = i.seq AND m.lease = i.token
              RETURNING i.seq, i.token),
     changed AS (UPDATE "outbox" AS m
                    SET state = CASE k.outcome WHEN 1 THEN 1 WHEN 2 THEN 2 WHEN 4 THEN 3 ELSE 0 END,
                        seq = CASE WHEN $6 AND m.key IS NOT NULL THEN m.seq ELSE k.fresh END,
                        available_at = CASE k.outcome WHEN 1 THEN clock_timestamp() + k.delay * interval '1 microsecond' ELSE m.available_at END,
                        attempts = CASE k.outcome WHEN 3 THEN greatest(m.attempts - 1, 0) ELSE m.attempts END,
                        last_error = CASE WHEN k.outcome IN (1, 2) THEN k.error ELSE m.last_error END,
                        history = CASE WHEN k.outcome IN (1, 2) THEN
                          (CASE WHEN jsonb_array_length(m.history) >= 10 THEN m.history - 0 ELSE coalesce(m.history, '[]') END)
                          || jsonb_build_object('attempt', m.attempts, 'at', clock_timestamp(), 'error', left(k.error, 200))
                          ELSE m.history END,
                        dead_at = CASE k.outcome WHEN 2 THEN clock_timestamp() END,
                        done_at = CASE k.outcome WHEN 4 THEN now() END,
                        lease = NULL, leased_until = NULL
                   FROM kept AS k
                  WHERE m.state = 0 AND m.seq = k.seq AND m.lease = k.token
                 RETURNING k.seq, k.token)
SELECT count(*),
       CASE WHEN count(*) < cardinality($1) THEN array_agg(seq) END,
       CASE WHEN count(*) < cardinality($1) THEN array_agg(token) END
  FROM (SELECT seq, token FROM done UNION ALL SELECT seq, token FROM changed) AS settled
