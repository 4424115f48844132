-- ?1 group, ?2 how many rows behind the group's position to look at. Answers as stats, of what is not in the group's own table:
-- what it has not read yet, and what is leased with ranges.
-- Beyond the bound the counts are projected from the numbers.
WITH cursor AS MATERIALIZED (SELECT position, topics FROM "log_groups" WHERE name = ?1),
ahead AS MATERIALIZED (
  SELECT seq, topic, state, created_at, available_at FROM "log" WHERE seq > (SELECT position FROM cursor) ORDER BY seq LIMIT ?2),
scale (factor) AS (
  SELECT CASE WHEN count(*) < ?2 THEN 1.0
              ELSE max(1.0, ((SELECT max(seq) FROM "log") - (SELECT position FROM cursor)) * 1.0 / max(1, max(seq) - (SELECT position FROM cursor))) END
    FROM ahead),
leased AS (
  SELECT topic, leased_until
    FROM (SELECT m.topic, r.leased_until, r.done, row_number() OVER (PARTITION BY r.token ORDER BY m.seq) - 1 AS place
            FROM "log_ranges" AS r
           CROSS JOIN "log" AS m
           WHERE r.group_name = ?1 AND m.seq > r.from_seq AND m.seq <= r.to_seq AND m.state = 0
             AND (r.topics IS NULL OR m.topic IN (SELECT value FROM json_each(r.topics))))
   WHERE done IS NULL OR substr(done, place + 1, 1) = '0')
SELECT state, topic, CAST(round(sum(factor)) AS INTEGER), CAST(round(coalesce(sum(factor) FILTER (WHERE is_due), 0)) AS INTEGER),
       count(*) FILTER (WHERE state = 0 AND NOT is_due), 0,
       CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - min(due_at) FILTER (WHERE is_due), max(attempts)
  FROM (SELECT a.state, a.topic, 0 AS attempts, CASE a.state WHEN 0 THEN a.created_at ELSE a.available_at END AS due_at,
               a.state = 0 OR a.available_at <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) AS is_due, s.factor
          FROM ahead AS a CROSS JOIN scale AS s CROSS JOIN cursor AS c
         WHERE c.topics IS NULL OR a.topic IN (SELECT value FROM json_each(c.topics))
        UNION ALL
        SELECT 0, topic, 1, leased_until, leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER), 1.0 FROM leased) AS counted
 GROUP BY state, topic
