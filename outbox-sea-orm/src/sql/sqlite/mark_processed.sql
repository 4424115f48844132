-- ?1 group, ?2 message, ?3 fingerprint, ?4 metadata. No row inserted means a duplicate.
INSERT INTO "inbox" (group_name, message_id, fingerprint, metadata) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (group_name, message_id) DO NOTHING
