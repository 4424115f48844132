-- The filter: $1 topic, $2 key, $3 part of the error, $4 least and $5 greatest age in microseconds, each may be NULL;
-- $6 number to continue behind, $7 limit. Index: outbox_dead.
SELECT seq, id, topic, key, payload, headers::text,
       CASE WHEN created_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN created_at END,
       attempts, fence, coalesce(last_error, ''), least(greatest(coalesce(dead_at, created_at), '1970-01-01Z'), '9999-12-31Z')
  FROM "outbox"
 WHERE state = 2 AND seq > $6
   AND ($1::text IS NULL OR topic = $1) AND ($2::text IS NULL OR key = $2)
   AND ($3::text IS NULL OR strpos(last_error, $3) > 0)
   AND ($4::bigint IS NULL OR dead_at <= clock_timestamp() - $4::bigint * interval '1 microsecond')
   AND ($5::bigint IS NULL OR dead_at >= clock_timestamp() - $5::bigint * interval '1 microsecond')
 ORDER BY seq
 LIMIT $7
