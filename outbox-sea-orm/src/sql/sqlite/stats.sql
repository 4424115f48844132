-- One row a topic: pending, due, claimed, dead, age of the oldest due message in milliseconds, highest attempt.
WITH m AS (
  SELECT topic, state, attempts, created_at,
         state = 0 AND leased_until IS NOT NULL AND leased_until > CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) AS claimed,
         CASE state WHEN 0 THEN leased_until IS NULL OR leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) WHEN 1 THEN available_at <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) ELSE 0 END AS due
    FROM "outbox")
SELECT topic,
       count(*) FILTER (WHERE state < 2 AND NOT claimed),
       count(*) FILTER (WHERE due),
       count(*) FILTER (WHERE claimed),
       count(*) FILTER (WHERE state = 2),
       CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - min(created_at) FILTER (WHERE due),
       coalesce(max(attempts) FILTER (WHERE state < 2), 0)
  FROM m
 GROUP BY topic
