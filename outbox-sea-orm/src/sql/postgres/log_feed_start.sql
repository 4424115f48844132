-- $1 group, $2 slot. From now on the slot delivers what has a higher number than any that was handed out.
UPDATE "log_groups" AS g
   SET slot = $2, fed_above = greatest(position, h.last), fed_upto = NULL, fed_lsn = s.confirmed_flush_lsn, fed_count = 0
  FROM pg_replication_slots AS s
 CROSS JOIN (SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('"log"', 'seq')::regclass), 0) AS last) AS h
 WHERE g.name = $1 AND s.slot_name = $2
