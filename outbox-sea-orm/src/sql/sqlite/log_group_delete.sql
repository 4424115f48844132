-- ?1 group.
DELETE FROM "log_groups" WHERE name = ?1
