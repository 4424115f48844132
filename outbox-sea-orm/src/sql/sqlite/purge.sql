-- ?1 group, ?2 age in milliseconds, ?3 limit. One bounded step, oldest first. Index: inbox_processed_at.
DELETE FROM "inbox"
 WHERE (group_name, message_id) IN (
       SELECT group_name, message_id FROM "inbox" WHERE group_name = ?1 AND processed_at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?2
        ORDER BY processed_at LIMIT ?3)
