-- $1 slot. Drops it, unless somebody reads it, and says whether somebody does.
SELECT active, CASE WHEN NOT active THEN pg_drop_replication_slot(slot_name)::text END FROM pg_replication_slots WHERE slot_name = $1
