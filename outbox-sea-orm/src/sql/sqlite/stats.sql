-- ?1 how many rows of each state to look at. One row a state and topic: rows, due, claimed, waiting for a retry, for how
-- many milliseconds the longest-due one has been due, highest attempt. Each state is read from its index, so that this
-- costs the same however large the table is; a state that fills its limit is counted by stats_sample.
SELECT state, topic, count(*), sum(is_due), sum(is_claimed), sum(is_retrying),
       CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - min(due_at) FILTER (WHERE is_due), max(attempts)
  FROM (SELECT * FROM (SELECT state, topic, attempts, coalesce(available_at, created_at) AS due_at, 1 AS is_due, 0 AS is_claimed, 0 AS is_retrying
                         FROM "outbox" WHERE state = 0 AND lease IS NULL ORDER BY seq LIMIT ?1)
        UNION ALL
        SELECT * FROM (SELECT state, topic, attempts, leased_until, leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER), leased_until > CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER), 0
                         FROM "outbox" WHERE state = 0 AND lease IS NOT NULL ORDER BY leased_until LIMIT ?1)
        UNION ALL
        SELECT * FROM (SELECT state, topic, attempts, available_at, available_at <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER), 0, attempts > 0 AND available_at > CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
                         FROM "outbox" WHERE state = 1 ORDER BY available_at LIMIT ?1)
        UNION ALL
        SELECT * FROM (SELECT state, topic, attempts, NULL, 0, 0, 0 FROM "outbox" WHERE state = 2 ORDER BY seq LIMIT ?1)
        UNION ALL
        SELECT * FROM (SELECT state, topic, attempts, NULL, 0, 0, 0 FROM "outbox" WHERE state = 3 ORDER BY done_at LIMIT ?1))
 GROUP BY state, topic
