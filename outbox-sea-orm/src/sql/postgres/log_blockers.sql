-- Who has written to the log and is open, and for how many microseconds, the longest first. To be shown: nothing is decided by it. A
-- prepared transaction is nobody's, and its locks go by another name after a restart.
SELECT CASE WHEN a.pid IS NOT NULL
            THEN format('session %s of %s%s, %s', a.pid, a.usename, ' (' || nullif(a.application_name, '') || ')', a.state)
            WHEN p.gid IS NOT NULL THEN format('prepared transaction %s of %s', p.gid, p.owner)
            ELSE 'a transaction of another role' END,
       coalesce((extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)) * 1000000)::bigint, 0)
  FROM (SELECT DISTINCT virtualtransaction, pid
          FROM pg_locks
         WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
           AND relation IN (SELECT relid FROM pg_partition_tree('"log"'))
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS l
  LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
  LEFT JOIN pg_locks AS x ON l.pid IS NULL AND x.virtualtransaction = l.virtualtransaction AND x.locktype = 'transactionid'
  LEFT JOIN pg_prepared_xacts AS p ON p.transaction = x.transactionid
 ORDER BY 2 DESC
 LIMIT 1
