-- $1 topic or NULL, $2 number to continue behind, $3 limit. Index: outbox_dead.
SELECT seq, id, topic, key, payload, headers::text,
       CASE WHEN created_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN created_at END,
       attempts, fence, coalesce(last_error, ''), least(greatest(coalesce(dead_at, created_at), '1970-01-01Z'), '9999-12-31Z')
  FROM "outbox"
 WHERE state = 2 AND seq > $2 AND ($1::text IS NULL OR topic = $1)
 ORDER BY seq
 LIMIT $3
