-- $1 how many rows of each state to look at. One row a state and topic: rows, due, claimed, waiting for a retry, for how
-- many microseconds the longest-due one has been due, highest attempt. Each state is read from its index, so that this
-- costs the same however large the table is; a state that fills its limit is counted by stats_sample.
SELECT state, topic, count(*), count(*) FILTER (WHERE is_due), count(*) FILTER (WHERE state = 0 AND NOT is_due),
       count(*) FILTER (WHERE state = 1 AND attempts > 0 AND NOT is_due),
       (extract(epoch FROM clock_timestamp() - min(least(greatest(due_at, '1970-01-01Z'), '9999-12-31Z')) FILTER (WHERE is_due)) * 1000000)::bigint, max(attempts)
  FROM ((SELECT state, topic, attempts, CASE WHEN lease IS NULL THEN coalesce(available_at, created_at) ELSE leased_until END AS due_at,
                lease IS NULL OR leased_until <= clock_timestamp() AS is_due
           FROM "outbox" WHERE state = 0 ORDER BY seq LIMIT $1)
        UNION ALL
        (SELECT state, topic, attempts, available_at, available_at <= clock_timestamp()
           FROM "outbox" WHERE state = 1 ORDER BY available_at LIMIT $1)
        UNION ALL
        (SELECT state, topic, attempts, NULL, false FROM "outbox" WHERE state = 2 ORDER BY seq LIMIT $1)
        UNION ALL
        (SELECT state, topic, attempts, NULL, false FROM "outbox" WHERE state = 3 ORDER BY done_at LIMIT $1)) AS m
 GROUP BY state, topic
