-- $1 limit. What waits to be delivered, the last number first, and its delay in microseconds.
SELECT seq, id, topic, key, payload, headers::text,
       CASE WHEN created_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN created_at END,
       attempts, fence,
       CASE state WHEN 1 THEN (extract(epoch FROM available_at - created_at) * 1000000)::bigint ELSE 0 END
  FROM "outbox"
 WHERE state IN (0, 1)
 ORDER BY seq DESC
 LIMIT $1
