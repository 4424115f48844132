-- Parameters: mark, token, limit. What the claim has leased. FROZEN.
SELECT seq, id, topic, `key`, payload, headers, created_at, attempts
  FROM outbox
 WHERE seq > ? AND lease = ?
 ORDER BY seq LIMIT ?
