-- ?1 group, ?2 topics as a JSON array or NULL, ?3 position.
INSERT INTO "log_groups" (name, topics, position) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING
