-- ?1 topic or NULL, ?2 number to continue behind, ?3 limit. Index: outbox_dead.
SELECT seq, id, topic, key, payload, headers, created_at, attempts, fence, coalesce(last_error, ''),
       coalesce(dead_at, created_at)
  FROM "outbox"
 WHERE state = 2 AND seq > ?2 AND (?1 IS NULL OR topic = ?1)
 ORDER BY seq
 LIMIT ?3
