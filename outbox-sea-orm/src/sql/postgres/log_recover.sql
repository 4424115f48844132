-- $1 group, $2 whether the log is ordered. Makes what is not settled of an expired range messages of the group's own table, under the
-- lease that has expired: there they are recovered like those of a queue, in groups that shrink to one. A settlement that comes
-- late finds them by id and token. On an ordered log they keep their numbers.
WITH expired AS MATERIALIZED (
  SELECT * FROM "log_ranges"
   WHERE group_name = $1 AND leased_until <= clock_timestamp()
   ORDER BY leased_until
   LIMIT 1
     FOR UPDATE SKIP LOCKED),
ended AS (DELETE FROM "log_ranges" AS r USING expired AS e WHERE r.token = e.token)
INSERT INTO "log_group" (seq, id, topic, key, payload, headers, created_at, available_at, lease, leased_until, attempts, fence)
SELECT CASE WHEN $2 THEN l.seq ELSE nextval((SELECT pg_get_serial_sequence('"log_group"', 'seq'))::regclass) END,
       l.id, l.topic, l.key, l.payload, l.headers, l.created_at,
       CASE WHEN $2 THEN coalesce(l.available_at, least(l.created_at, clock_timestamp())) ELSE l.available_at END,
       l.token, l.leased_until, 1, 1
  FROM (SELECT m.*, e.token, e.leased_until, e.done, row_number() OVER (PARTITION BY e.token ORDER BY m.seq) - 1 AS place
          FROM expired AS e
         CROSS JOIN LATERAL (
               SELECT * FROM "log"
                WHERE seq > e.from_seq AND seq <= e.to_seq AND state = 0
                  AND (e.topics IS NULL OR topic = ANY (e.topics))) AS m) AS l
 WHERE l.done IS NULL OR get_bit(l.done, l.place::integer) = 0
 ORDER BY l.seq
ON CONFLICT DO NOTHING
