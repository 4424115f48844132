-- Parameters: result, group, message.
UPDATE `inbox` SET result = ? WHERE group_name = ? AND message_id = ?
