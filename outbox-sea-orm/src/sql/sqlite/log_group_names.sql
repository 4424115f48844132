SELECT name FROM "log_groups" ORDER BY name
