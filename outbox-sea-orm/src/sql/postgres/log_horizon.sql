-- $1 group, $2 names of sessions. The highest number handed out, then who holds the lock that every INSERT takes before it draws its number, on
-- the log or straight on one of its partitions; the second depends on the first, so that it is read after it. Then how far
-- the group has read, NULL where there is no such group, the name of this session, and whether it or another one in $2 is there: no
-- session outlives a crash of the server, or is on another one. Then whether it is a standby, which shows no locks, and whether the WAL delivers all that the group has not read.
SELECT handed_out.last,
       ARRAY(SELECT DISTINCT virtualtransaction
               FROM pg_locks
              WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
                AND relation IN (SELECT relid FROM pg_partition_tree('"log"'))
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND handed_out.last IS NOT NULL),
       (SELECT position FROM "log_groups" WHERE name = $1),
       me.name,
       me.name = ANY (me.known) OR "is_there",
       pg_is_in_recovery(),
       coalesce((SELECT position >= fed_above FROM "log_groups" WHERE name = $1), false)
  FROM (SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('"log"', 'seq')::regclass), 0) AS last OFFSET 0) AS handed_out
 CROSS JOIN (SELECT "named_session" AS name, $2::text[] AS known OFFSET 0) AS me
