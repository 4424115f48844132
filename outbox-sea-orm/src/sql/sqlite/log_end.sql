-- ?1 token of a range of which everything is settled or elsewhere.
DELETE FROM "log_ranges" WHERE token = ?1
