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
INSERT INTO "log_group" (seq, id, topic, key, payload, headers, created_at, state, available_at, lease, leased_until, attempts, fence)
SELECT CASE WHEN $2 THEN l.seq ELSE nextval((SELECT pg_get_serial_sequence('"log_group"', 'seq'))::regclass) END,
       l.id, l.topic, l.key, l.payload, l.headers, l.created_at, l.state,
       CASE WHEN $2 THEN coalesce(l.available_at, least(l.created_at, clock_timestamp())) ELSE l.available_at END,
       CASE l.state WHEN 0 THEN l.token END, CASE l.state WHEN 0 THEN l.leased_until END, CASE l.state WHEN 0 THEN 1 ELSE 0 END,
       CASE l.state WHEN 0 THEN 1 ELSE 0 END
  FROM (SELECT m.*, e.token, e.leased_until, e.done, row_number() OVER (PARTITION BY e.token ORDER BY m.seq) - 1 AS place
          FROM expired AS e
         CROSS JOIN LATERAL (
               SELECT l.*
                 FROM generate_series(1, coalesce(cardinality(e.runs), 2), 2) AS i
                CROSS JOIN LATERAL (
                      SELECT * FROM "log"
                       WHERE seq > coalesce(e.runs[i], e.from_seq) AND seq <= coalesce(e.runs[i + 1], e.to_seq)
                         AND (e.topics IS NULL OR topic = ANY (e.topics))) AS l) AS m) AS l
 WHERE l.done IS NULL OR get_bit(l.done, l.place::integer) = 0
 ORDER BY l.seq
ON CONFLICT DO NOTHING
