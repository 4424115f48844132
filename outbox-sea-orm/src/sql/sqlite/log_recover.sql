-- ?1 numbers as a JSON array, ?2 token of their range, ?3 whether they are kept. Messages that are leased with a range become
-- messages of the group's own table, under the same lease. Where it has expired, they are recovered there like those of a queue,
-- in groups that shrink to one. A settlement that comes late finds them by id and token.
INSERT INTO "log_group" (seq, id, topic, key, payload, headers, created_at, available_at, lease, leased_until, attempts, fence)
SELECT CASE WHEN ?3 THEN l.seq END, l.id, l.topic, l.key, l.payload, l.headers, l.created_at, l.available_at, r.token, r.leased_until, 1, 1
  FROM json_each(?1) AS i
 CROSS JOIN "log" AS l
 CROSS JOIN "log_ranges" AS r
 WHERE l.seq = i.value AND r.token = ?2
 ORDER BY i.key
ON CONFLICT (id) DO NOTHING
