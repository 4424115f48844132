-- ?1 limit, ?2 token, ?3 mark, ?4 lease in milliseconds. FROZEN.
UPDATE outbox
   SET leased_until = CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?4, attempts = attempts + 1, lease = ?2
 WHERE seq IN (SELECT seq FROM outbox
                WHERE state = 0 AND seq > ?3 AND leased_until <= CAST(unixepoch('subsec') * 1000 AS INTEGER)
                ORDER BY seq LIMIT ?1)
RETURNING seq, id, topic, key, payload, headers, created_at, attempts
