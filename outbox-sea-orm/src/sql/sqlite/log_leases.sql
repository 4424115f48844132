-- ?1 group. How many of its ranges have expired, and in how many milliseconds the next one does.
SELECT count(*) FILTER (WHERE leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
       min(leased_until) FILTER (WHERE leased_until > CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER))
       - CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
  FROM "log_ranges"
 WHERE group_name = ?1
