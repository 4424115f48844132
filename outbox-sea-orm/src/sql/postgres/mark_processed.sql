-- $1 group, $2 message, $3 fingerprint, $4 metadata. Waits while another transaction holds the same record. No row
-- inserted means a duplicate; find_processed reads it with a snapshot of its own.
INSERT INTO "inbox" (group_name, message_id, fingerprint, metadata) VALUES ($1, $2, $3, $4::jsonb)
ON CONFLICT DO NOTHING
