-- $1 group. Its replication slot, NULL where it has none.
SELECT slot FROM "log_groups" WHERE name = $1
