-- $1 guard. Whether some sleeper holds the guard.
SELECT EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ExclusiveLock' AND granted
                  AND classid = ((($1::bigint >> 32) & 4294967295)::bigint)::oid AND objid = (($1::bigint & 4294967295)::bigint)::oid
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
