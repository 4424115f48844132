-- $1 group, $2 slot. From now on the slot delivers what has a higher number than any that was handed out.
UPDATE "log_groups" AS g
   SET slot = $2, fed_above = greatest(position, h.last), fed_upto = NULL, fed_lsn = s.confirmed_flush_lsn, fed_count = 0, fed_snapshot = NULL,
       published = (SELECT r.oid FROM pg_publication AS p JOIN pg_publication_rel AS r ON r.prpubid = p.oid
                     WHERE p.pubname = ('outbox_' || '"log"'::regclass::oid)::name AND r.prrelid = '"log"'::regclass)
  FROM pg_replication_slots AS s
 CROSS JOIN (SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('"log"', 'seq')::regclass), 0) AS last) AS h
 WHERE g.name = $1 AND s.slot_name = $2
