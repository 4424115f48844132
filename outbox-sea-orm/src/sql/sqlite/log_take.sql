-- ?1 numbers as a JSON array. The messages as a claim answers them. The caller sorts them.
SELECT l.seq, l.id, l.topic, l.key, l.payload, l.headers, l.created_at, 1, 1, 0
  FROM json_each(?1) AS i
 CROSS JOIN "log" AS l
 WHERE l.seq = i.value
