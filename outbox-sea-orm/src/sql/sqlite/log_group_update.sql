-- ?1 group, ?2 topics as a JSON array or NULL, for what it has not read yet.
UPDATE "log_groups" SET topics = ?2 WHERE name = ?1
