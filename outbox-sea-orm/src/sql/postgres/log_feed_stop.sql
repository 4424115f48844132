-- $1 group. From now on the slot delivers no number above the highest that was handed out.
UPDATE "log_groups" SET fed_upto = greatest(fed_above, coalesce(pg_sequence_last_value(pg_get_serial_sequence('"log"', 'seq')::regclass), 0))
 WHERE name = $1 AND slot IS NOT NULL AND fed_upto IS NULL
