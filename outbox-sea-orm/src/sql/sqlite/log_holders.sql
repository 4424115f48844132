-- ?1 age in milliseconds. Which groups keep a message that is older: the first one that some group has not read, or has leased with a
-- range. They are looked for from the lowest number that is needed.
WITH needed AS MATERIALIZED (
  SELECT min(coalesce((SELECT min(position) FROM "log_groups"), 9223372036854775807),
             coalesce((SELECT min(from_seq) FROM "log_ranges"), 9223372036854775807)) AS position),
old AS MATERIALIZED (
  SELECT seq FROM (SELECT seq, created_at FROM "log" WHERE seq > (SELECT position FROM needed) ORDER BY seq LIMIT 1)
   WHERE created_at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?1)
SELECT name FROM "log_groups" CROSS JOIN old WHERE position < old.seq
 UNION
SELECT group_name FROM "log_ranges" CROSS JOIN old WHERE from_seq < old.seq
 ORDER BY 1
