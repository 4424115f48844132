-- $1 group, $2 slot, $3 position. The slot has delivered everything: the group is read by number again.
UPDATE "log_groups" SET position = greatest(position, $3), slot = NULL, fed_above = NULL, fed_upto = NULL, fed_lsn = NULL, fed_count = NULL
 WHERE name = $1 AND slot = $2
