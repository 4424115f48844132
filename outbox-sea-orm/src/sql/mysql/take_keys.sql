-- Parameters: key, id of its message, for how long it is honoured in microseconds. One key a statement: only so does the last
-- insert id say what became of it, 1 for a key that is honoured and stays as it is, 0 for one that is taken now. Waits for a
-- transaction that has taken the key and not ended. The exclusive lock on a key that is there spares the deadlock of several
-- repeats that wait for a transaction that rolls back.
INSERT INTO `outbox_dedup` (dedup_key, id, expires_at) VALUES (?, ?, UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND)
ON DUPLICATE KEY UPDATE
  id = IF(LAST_INSERT_ID(expires_at > UTC_TIMESTAMP(6)) = 1, id, VALUES(id)),
  expires_at = IF(expires_at > UTC_TIMESTAMP(6), expires_at, VALUES(expires_at))
