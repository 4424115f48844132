-- Where the next record of the WAL goes, and a snapshot that is older: whatever is visible by now was committed before.
SELECT pg_current_wal_insert_lsn()::text, pg_current_snapshot()::text
