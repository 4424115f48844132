-- $1 mark, $2 topics or NULL, $3 sessions. What a claimer needs to know about everything above its mark, without locking:
--  * the lowest ready row that nobody has claimed; one that another claimer holds at the moment is among them, in
--    case it rolls back. Behind 10,000 rows of other topics it searches the index topic by topic, which does not read
--    rows: a million of them take 25 ms instead of 400;
--  * whether parked rows are due, and in how many microseconds the next one is;
--  * the highest number handed out, and who holds the lock that every INSERT takes before it draws its number. The
--    order matters: the second depends on the first, so it is read after it; then the name of this session, and
--    whether one of those in $3 is there: it would have gone with a crash, and is not on a server that takes over;
--  * where nothing is ready: how many leases have expired, and in how many microseconds the next one does. That walks
--    the claimed rows, which are in no index of their own;
-- Times before 1970 or after 9999 do not count: somebody may have written infinity.
SELECT ready.lowest,
       coalesce(parked.available_at <= clock_timestamp(), false),
       (extract(epoch FROM CASE WHEN parked.available_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN parked.available_at END
        - clock_timestamp()) * 1000000)::bigint,
       handed_out.last,
       ARRAY(SELECT DISTINCT virtualtransaction
               FROM pg_locks
              WHERE locktype = 'relation' AND relation = '"outbox"'::regclass AND mode = 'RowExclusiveLock'
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND handed_out.last IS NOT NULL),
       me.name,
       me.name = ANY (me.known) OR "is_there",
       leased.n_expired,
       leased.next_expiry
  FROM (SELECT CASE WHEN $2::text[] IS NULL
               THEN (SELECT seq FROM "outbox" WHERE state = 0 AND lease IS NULL AND seq > $1 ORDER BY seq LIMIT 1)
               ELSE coalesce(
                    (SELECT seq FROM (SELECT seq, topic, lease FROM "outbox" WHERE state = 0 AND seq > $1
                                       ORDER BY seq LIMIT 10000) AS near
                      WHERE lease IS NULL AND topic = ANY ($2::text[]) ORDER BY seq LIMIT 1),
                    (SELECT min(first.seq)
                       FROM unnest($2::text[]) AS served (topic)
                      CROSS JOIN LATERAL (SELECT seq FROM "outbox" AS m
                                           WHERE state = 0 AND lease IS NULL AND seq > $1 AND m.topic = served.topic
                                           ORDER BY seq LIMIT 1) AS first))
               END AS lowest OFFSET 0) AS ready
 CROSS JOIN (SELECT min(available_at) AS available_at FROM "outbox" WHERE state = 1) AS parked
 CROSS JOIN (SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('"outbox"', 'seq')::regclass), 0) AS last OFFSET 0) AS handed_out
 CROSS JOIN (SELECT "named_session" AS name, $3::text[] AS known OFFSET 0) AS me
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE leased_until <= clock_timestamp()) AS n_expired,
              (extract(epoch FROM min(leased_until) FILTER (WHERE leased_until > clock_timestamp() AND leased_until <= '9999-12-31Z')
               - clock_timestamp()) * 1000000)::bigint
              AS next_expiry
         FROM "outbox"
        WHERE ready.lowest IS NULL AND state = 0 AND lease IS NOT NULL AND ($2::text[] IS NULL OR topic = ANY ($2::text[]))) AS leased
