-- The highest number handed out, then who holds the lock that every INSERT takes before it draws its number, as in
-- look: a loop reads it once before its first look, so that this one can move its mark already.
SELECT handed_out.last,
       ARRAY(SELECT DISTINCT virtualtransaction
               FROM pg_locks
              WHERE locktype = 'relation' AND relation = '"outbox"'::regclass AND mode = 'RowExclusiveLock'
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND handed_out.last IS NOT NULL)
  FROM (SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('"outbox"', 'seq')::regclass), 0) AS last OFFSET 0) AS handed_out
