-- ?1 numbers as a JSON array, ?2 whether they are kept. Messages that cannot be leased with a range go to the group's own table.
INSERT INTO "log_group" (seq, id, topic, key, payload, headers, created_at, state, available_at)
SELECT CASE WHEN ?2 THEN l.seq END, l.id, l.topic, l.key, l.payload, l.headers, l.created_at, l.state, l.available_at
  FROM json_each(?1) AS i
 CROSS JOIN "log" AS l
 WHERE l.seq = i.value
 ORDER BY i.key
ON CONFLICT (id) DO NOTHING
