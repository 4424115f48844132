-- ?1 age in milliseconds, ?2 limit. One bounded step. Index: outbox_dead.
DELETE FROM "outbox"
 WHERE seq IN (SELECT seq FROM "outbox" WHERE state = 2 AND dead_at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?1 ORDER BY seq LIMIT ?2)
