-- $1 age in microseconds. Which transactions of this database are older and keep rows from being vacuumed, for how many
-- seconds, and whether they have written to the table, which keeps the marks of claimers where they are. A replication
-- slot has no age.
SELECT format('session %s of %s%s, %s', pid, usename, ' (' || nullif(application_name, '') || ')', state),
       extract(epoch FROM clock_timestamp() - xact_start)::bigint,
       EXISTS (SELECT FROM pg_locks AS l
                WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.relation = '"outbox"'::regclass AND l.mode = 'RowExclusiveLock'
                  AND l.database = a.datid)
  FROM pg_stat_activity AS a
 WHERE (datname = current_database() OR backend_type = 'walsender') AND backend_type <> 'autovacuum worker'
   AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND pid <> pg_backend_pid()
   AND xact_start < (SELECT clock_timestamp() - $1::bigint * interval '1 microsecond')
UNION ALL
SELECT format('prepared transaction %s of %s', gid, owner), extract(epoch FROM clock_timestamp() - prepared)::bigint,
       -- its locks are nobody's; they go by the virtual transaction that it had, and by another one after a restart
       EXISTS (SELECT FROM pg_locks AS l JOIN pg_locks AS x USING (virtualtransaction)
                WHERE x.locktype = 'transactionid' AND x.transactionid = p.transaction
                  AND l.relation = '"outbox"'::regclass AND l.mode = 'RowExclusiveLock' AND l.pid IS NULL)
  FROM pg_prepared_xacts AS p
 WHERE database = current_database() AND prepared < (SELECT clock_timestamp() - $1::bigint * interval '1 microsecond')
UNION ALL
SELECT format('replication slot %s', slot_name), NULL, false FROM pg_replication_slots WHERE xmin IS NOT NULL AND NOT active
