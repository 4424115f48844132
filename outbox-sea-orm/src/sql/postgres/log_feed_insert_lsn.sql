-- Where the next record of the WAL goes: whatever is visible by now was committed before.
SELECT pg_current_wal_insert_lsn()::text
