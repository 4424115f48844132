-- Which groups have not read all of a partition, or have leased a range that reaches into it; "log_partition" is its name.
WITH ends AS (SELECT min(seq) AS first, max(seq) AS last FROM "log_partition")
SELECT name FROM "log_groups" CROSS JOIN ends AS e WHERE position < e.last
 UNION
SELECT group_name FROM "log_ranges" CROSS JOIN ends AS e WHERE from_seq < e.last AND to_seq >= e.first
 ORDER BY 1
