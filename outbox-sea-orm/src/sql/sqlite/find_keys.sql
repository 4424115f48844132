-- One parameter a key. The messages of those that are honoured.
SELECT dedup_key, id
  FROM "outbox_dedup"
 WHERE dedup_key IN (VALUES (?)) AND expires_at > CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
