-- ?1 limit. What waits to be delivered, the last number first, and its delay in milliseconds.
SELECT seq, id, topic, key, payload, headers, created_at, attempts, fence, CASE state WHEN 1 THEN available_at - created_at ELSE 0 END
  FROM "outbox"
 WHERE state IN (0, 1)
 ORDER BY seq DESC
 LIMIT ?1
