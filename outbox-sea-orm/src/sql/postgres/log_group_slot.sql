-- $1 group. Its slot; no claim takes anything until the transaction ends.
SELECT slot FROM "log_groups" WHERE name = $1 FOR UPDATE
