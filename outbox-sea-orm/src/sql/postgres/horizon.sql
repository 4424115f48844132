-- $1 sessions. The highest number handed out, then who holds the lock that every INSERT takes before it draws its number, the name
-- of this session, and whether one of $1 is there, as in look: a loop reads it once before its first look, so that this one can move its mark already.
SELECT handed_out.last,
       ARRAY(SELECT DISTINCT virtualtransaction
               FROM pg_locks
              WHERE locktype = 'relation' AND relation = '"outbox"'::regclass AND mode = 'RowExclusiveLock'
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND handed_out.last IS NOT NULL),
       me.name,
       me.name = ANY (me.known) OR "is_there"
  FROM (SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('"outbox"', 'seq')::regclass), 0) AS last OFFSET 0) AS handed_out
 CROSS JOIN (SELECT "named_session" AS name, $1::text[] AS known OFFSET 0) AS me
