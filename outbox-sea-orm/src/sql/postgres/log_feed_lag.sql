-- $1 group. Its slot, whether it is there, whether it is lost, whether somebody reads it, and how many bytes of WAL it keeps.
SELECT g.slot, s.slot_name IS NOT NULL, coalesce(s.wal_status = 'lost', false), coalesce(s.active, false),
       coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, s.restart_lsn), 0)::bigint
  FROM "log_groups" AS g
  LEFT JOIN pg_replication_slots AS s ON s.slot_name = g.slot
 WHERE g.name = $1 AND g.slot IS NOT NULL
