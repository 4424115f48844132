-- ?1 group, ?2 message.
SELECT fingerprint, metadata, result, processed_at FROM "inbox" WHERE group_name = ?1 AND message_id = ?2
