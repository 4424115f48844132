-- Who may have inserted without a notification: the holders of the lock that every INSERT keeps until its commit is
-- visible.
SELECT ARRAY(SELECT DISTINCT virtualtransaction
               FROM pg_locks
              WHERE locktype = 'relation' AND relation = '"outbox"'::regclass AND mode = 'RowExclusiveLock'
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
