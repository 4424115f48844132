-- ?1 group, ?2 position.
UPDATE "log_groups" SET position = ?2 WHERE name = ?1
