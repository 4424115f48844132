-- $1 group. The highest number handed out, then who holds the lock that every INSERT takes before it draws its number, on
-- the log or straight on one of its partitions; the second depends on the first, so that it is read after it. Then how far
-- the group has read, NULL where there is no such group, and a name of this session: after a crash of the server nobody
-- has an old one. Then whether it is a standby, which shows no locks, and whether the WAL delivers all that the group has not read.
SELECT handed_out.last,
       ARRAY(SELECT DISTINCT virtualtransaction
               FROM pg_locks
              WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
                AND relation IN (SELECT relid FROM pg_partition_tree('"log"'))
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND handed_out.last IS NOT NULL),
       (SELECT position FROM "log_groups" WHERE name = $1),
       set_config('outbox.session', coalesce(nullif(current_setting('outbox.session', true), ''), gen_random_uuid()::text), false),
       pg_is_in_recovery(),
       coalesce((SELECT position >= fed_above FROM "log_groups" WHERE name = $1), false)
  FROM (SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('"log"', 'seq')::regclass), 0) AS last OFFSET 0) AS handed_out
