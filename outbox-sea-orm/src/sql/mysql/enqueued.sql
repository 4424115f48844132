-- Parameter: limit. What waits to be delivered, the last number first, and its delay in microseconds.
SELECT seq, id, topic, `key`, payload, headers, created_at, attempts, fence,
       IF(state = 1, GREATEST(due DIV 1000 - TIMESTAMPDIFF(MICROSECOND, '1970-01-01', created_at), 0), 0)
  FROM `outbox`
 WHERE state IN (0, 1, 4)
 ORDER BY seq DESC
 LIMIT ?
