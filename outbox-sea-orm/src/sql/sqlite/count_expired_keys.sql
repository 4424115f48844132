-- ?1 age in milliseconds, ?2 limit. What prune_keys would remove.
SELECT count(*)
  FROM (SELECT 1 FROM "outbox_dedup" WHERE expires_at <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?1 LIMIT ?2)
