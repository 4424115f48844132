-- $1 group, $2 message, $3 result.
UPDATE "inbox" SET result = $3::jsonb WHERE group_name = $1 AND message_id = $2
