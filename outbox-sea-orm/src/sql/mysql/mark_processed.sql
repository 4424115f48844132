-- Parameters: group, message, fingerprint, metadata. Waits while another transaction holds the same record. The last
-- insert id is 1 for a duplicate, which stays as it is; the exclusive lock on it spares the deadlock of several
-- duplicates that wait for one that rolls back.
INSERT INTO `inbox` (group_name, message_id, fingerprint, metadata) VALUES (?, ?, ?, ?)
ON DUPLICATE KEY UPDATE fingerprint = IF(LAST_INSERT_ID(1) = 1, fingerprint, NULL)
