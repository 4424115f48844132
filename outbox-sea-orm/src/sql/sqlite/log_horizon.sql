-- ?1 group. The highest number that is committed, nothing, and how far the group has read, NULL where there is no such group. Below
-- a number that is committed none can appear any more.
SELECT coalesce((SELECT max(seq) FROM "log"), 0), NULL, (SELECT position FROM "log_groups" WHERE name = ?1)
