-- ?1 group. The range that expired first.
SELECT token FROM "log_ranges"
 WHERE group_name = ?1 AND leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
 ORDER BY leased_until
 LIMIT 1
