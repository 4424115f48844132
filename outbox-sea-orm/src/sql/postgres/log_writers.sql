-- Who may have inserted without a notification, into the log or into the group's own table: the holders of the lock that
-- every INSERT keeps until its commit is visible.
SELECT ARRAY(SELECT DISTINCT virtualtransaction
               FROM pg_locks
              WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
                AND relation IN (SELECT relid FROM pg_partition_tree('"log"') UNION ALL SELECT '"log_group"'::regclass)
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
