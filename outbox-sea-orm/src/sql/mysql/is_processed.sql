-- Parameters: group, message.
SELECT 1 FROM `inbox` WHERE group_name = ? AND message_id = ?
