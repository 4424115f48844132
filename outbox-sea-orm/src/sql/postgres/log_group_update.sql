-- $1 group, $2 topics or NULL, for what it has not read yet.
UPDATE "log_groups" SET topics = $2 WHERE name = $1
