-- ?1 group.
DELETE FROM "log_ranges" WHERE group_name = ?1
