-- $1 group, $2 slot, $3 position, or 0 to leave it. The group is read by number again. A position is only good while the slot is read: a
-- server that takes over hands out its numbers again.
UPDATE "log_groups" SET position = greatest(position, $3), slot = NULL, published = NULL, fed_above = NULL, fed_upto = NULL,
       fed_lsn = NULL, fed_count = NULL, fed_snapshot = NULL
 WHERE name = $1 AND slot = $2
   AND ($3 = 0 OR EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $2 AND active))
