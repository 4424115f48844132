-- ?1 token, ?2 group, ?3 and ?4 its ends, ?5 topics that are served as a JSON array or NULL, ?6 how many messages, ?7 which of them
-- are not leased with it, ?8 lease in milliseconds.
INSERT INTO "log_ranges" (token, group_name, from_seq, to_seq, topics, n, done, leased_until)
SELECT ?1, name, ?3, ?4,
       CASE WHEN ?5 IS NULL THEN topics WHEN topics IS NULL THEN ?5
            ELSE (SELECT json_group_array(value) FROM json_each(topics) WHERE value IN (SELECT value FROM json_each(?5))) END,
       ?6, ?7, CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + ?8
  FROM "log_groups"
 WHERE name = ?2
