-- $1 mark, $2 topics or NULL. What a claimer needs to know about everything above its mark, without locking: the lowest
-- ready row that nobody has claimed (one that another claimer holds at the moment is among them, in case it rolls
-- back); whether parked rows are due, and in how many microseconds the next one is; the highest number handed out;
-- and who holds the lock that every INSERT takes before it draws its number. The order matters: the last column
-- depends on the one before, so it is read after it.
SELECT (SELECT seq FROM "outbox"
         WHERE state = 0 AND lease IS NULL AND seq > $1 AND ($2::text[] IS NULL OR topic = ANY ($2::text[]))
         ORDER BY seq LIMIT 1),
       coalesce(next.available_at <= clock_timestamp(), false),
       (extract(epoch FROM next.available_at - clock_timestamp()) * 1000000)::bigint,
       handed_out.last,
       ARRAY(SELECT DISTINCT virtualtransaction
               FROM pg_locks
              WHERE locktype = 'relation' AND relation = '"outbox"'::regclass AND mode = 'RowExclusiveLock'
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND handed_out.last IS NOT NULL)
  FROM (SELECT min(available_at) AS available_at FROM "outbox" WHERE state = 1) AS next,
       (SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('"outbox"', 'seq')::regclass), 0) AS last OFFSET 0) AS handed_out
