-- $1 id. Of the last message where a partitioned table has several.
SELECT history::text FROM "outbox" WHERE id = $1 AND history IS NOT NULL ORDER BY seq DESC LIMIT 1
