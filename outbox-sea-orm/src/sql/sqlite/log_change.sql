-- ?1 token of a range, ?2 which of its messages are settled.
UPDATE "log_ranges" SET done = ?2 WHERE token = ?1
