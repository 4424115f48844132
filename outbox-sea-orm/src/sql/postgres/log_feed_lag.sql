-- $1 group. Its slot, whether it is there, whether it is lost, whether somebody reads it, how many bytes of WAL it keeps, and how many
-- were written since what is confirmed. Everybody may read this view; on a standby the WAL ends where it is replayed.
SELECT g.slot, s.slot_name IS NOT NULL, coalesce(s.wal_status = 'lost', false), coalesce(s.active, false),
       coalesce(greatest(pg_wal_lsn_diff(wal.lsn, s.restart_lsn), 0), 0)::bigint,
       coalesce(greatest(pg_wal_lsn_diff(wal.lsn, s.confirmed_flush_lsn), 0), 0)::bigint
  FROM "log_groups" AS g
 CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn) AS wal
  LEFT JOIN pg_replication_slots AS s ON s.slot_name = g.slot AND s.database = current_database()
 WHERE g.name = $1 AND g.slot IS NOT NULL
