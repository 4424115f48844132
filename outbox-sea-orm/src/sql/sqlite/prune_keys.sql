-- ?1 age in milliseconds, ?2 limit. One bounded step, oldest first. Index: outbox_dedup_expiry.
DELETE FROM "outbox_dedup"
 WHERE dedup_key IN (SELECT dedup_key FROM "outbox_dedup" WHERE expires_at <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?1 ORDER BY expires_at LIMIT ?2)
