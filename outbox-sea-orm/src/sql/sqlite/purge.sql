-- ?1 age in milliseconds, ?2 limit. One bounded step, oldest first. Index: inbox_processed_at.
DELETE FROM "inbox"
 WHERE (group_name, message_id) IN (
       SELECT group_name, message_id FROM "inbox" WHERE processed_at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?1 ORDER BY processed_at LIMIT ?2)
