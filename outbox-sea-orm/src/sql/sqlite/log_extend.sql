-- ?1 token of a range, ?2 lease in milliseconds.
UPDATE "log_ranges" SET leased_until = CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + ?2 WHERE token = ?1
