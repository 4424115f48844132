-- How far the WAL has been written: what was committed before, unless by a commit that does not wait for it.
SELECT pg_current_wal_flush_lsn()::text
