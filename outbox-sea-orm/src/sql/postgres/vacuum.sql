-- Whether autovacuum works on the table, how many dead rows it has, how many seconds ago they were vacuumed last, and
-- whether the trigger of the wake-up fires. Of the partition with the most dead rows where there are partitions.
SELECT current_setting('autovacuum')::boolean
         AND coalesce((SELECT bool_and(option_value::boolean) FROM pg_options_to_table(c.reloptions) WHERE option_name = 'autovacuum_enabled'), true),
       pg_stat_get_dead_tuples(c.oid),
       extract(epoch FROM clock_timestamp() - greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)))::bigint,
       EXISTS (SELECT FROM pg_trigger WHERE tgrelid = '"outbox"'::regclass AND tgname = trim('"' FROM '"outbox_notify"') AND tgenabled <> 'D')
  FROM pg_class AS c
 WHERE c.oid = '"outbox"'::regclass AND c.relkind <> 'p' OR c.oid IN (SELECT relid FROM pg_partition_tree('"outbox"'::regclass) WHERE isleaf)
 ORDER BY 1, 2 DESC
 LIMIT 1
