-- $1 group, $2 message.
SELECT 1 FROM "inbox" WHERE group_name = $1 AND message_id = $2
