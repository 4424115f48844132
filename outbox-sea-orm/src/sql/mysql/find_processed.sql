-- Parameters: group, message. Locks, in order to see what was committed after the snapshot of a transaction under
-- REPEATABLE READ.
SELECT fingerprint, metadata, result, processed_at FROM `inbox` WHERE group_name = ? AND message_id = ? LOCK IN SHARE MODE
