-- ?1 age in milliseconds, ?2 limit. One bounded step, oldest first. Index: outbox_done.
DELETE FROM "outbox"
 WHERE seq IN (SELECT seq FROM "outbox" WHERE state = 3 AND done_at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?1 ORDER BY done_at LIMIT ?2)
