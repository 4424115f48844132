-- ?1 state: 2 dead, 3 done; ?2 age in milliseconds, ?3 limit. What prune_dead or prune_done would remove.
SELECT count(*)
  FROM (SELECT 1 FROM "outbox" WHERE state = 3 AND ?1 = 3 AND done_at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?2
        UNION ALL
        SELECT 1 FROM "outbox" WHERE state = 2 AND ?1 = 2 AND dead_at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?2
        LIMIT ?3)
