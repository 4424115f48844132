-- $1 group, $2 token, $3 lease in microseconds, $4 how many rows to examine, $5 horizon, $6 limit, $7 names of sessions for
-- which the horizon holds: without a row in any other. Leases the next rows of the log up to the horizon, and moves the group's
-- position beyond them. Whoever waited for the position sees the newest one, and the rows behind it whatever its snapshot:
-- nothing at or below the horizon can still appear. Where the group is fed from the WAL, only what that does not deliver.
-- The rows are read by log_read, when the position is free again. Here they are only counted: from the index alone where the
-- group wants every topic, and where it does not, by their topics. Where too many are wanted this changes nothing and says so:
-- log_claim_mixed is for that. Index: log_seq.
-- It commits without waiting for the disk, so that nobody waits for the position meanwhile: log_read does.
WITH cursor AS MATERIALIZED (
  SELECT position, topics, least($5, fed_above) AS horizon FROM "log_groups" WHERE name = $1 AND "this_session" = ANY ($7::text[]) FOR UPDATE),
ended AS MATERIALIZED (
  SELECT c.position, c.topics, e.n, e.upto, e.n_own, e.n_own <= $6 AS is_plain,
         e.n < CASE WHEN c.topics IS NULL THEN least($4, $6) ELSE $4 END AS is_all
    FROM cursor AS c
   CROSS JOIN LATERAL (
         SELECT count(*) AS n, max(r.seq) AS upto, count(*) FILTER (WHERE r.is_own) AS n_own
           FROM ((SELECT seq, true AS is_own
                    FROM "log"
                   WHERE seq > c.position AND seq <= c.horizon AND c.topics IS NULL
                   ORDER BY seq
                   LIMIT least($4, $6))
                 UNION ALL
                 (SELECT seq, topic = ANY (c.topics)
                    FROM "log"
                   WHERE seq > c.position AND seq <= c.horizon AND c.topics IS NOT NULL
                   ORDER BY seq
                   LIMIT $4)) AS r) AS e),
moved AS (
  UPDATE "log_groups" AS g SET position = e.upto
    FROM ended AS e
   WHERE g.name = $1 AND e.is_plain AND e.n > 0),
leased AS (
  INSERT INTO "log_ranges" (token, group_name, from_seq, to_seq, topics, n, leased_until)
  SELECT $2, $1, e.position, e.upto, e.topics, e.n_own, clock_timestamp() + $3::bigint * interval '1 microsecond'
    FROM ended AS e
   WHERE e.is_plain AND e.n_own > 0)
SELECT position, upto, topics, n_own, is_plain, is_all, set_config('synchronous_commit', 'off', true) FROM ended
