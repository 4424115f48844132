-- $1 slot. Drops it, unless somebody reads it, and says whether somebody does. A restored copy of a database has the names of the
-- original's slots.
SELECT active, CASE WHEN NOT active THEN pg_drop_replication_slot(slot_name)::text END FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()
