-- Three parameters a row: key, id of its message, for how long it is honoured in milliseconds. The row of parameters is
-- repeated as often as there are keys. Takes those that are not there or have expired, and returns them.
WITH d (dedup_key, id, retention) AS (VALUES (?, ?, ?))
INSERT INTO "outbox_dedup" AS k (dedup_key, id, expires_at)
SELECT dedup_key, id, CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + retention
  FROM d WHERE true
ON CONFLICT (dedup_key) DO UPDATE SET id = excluded.id, expires_at = excluded.expires_at
 WHERE k.expires_at <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
RETURNING dedup_key
