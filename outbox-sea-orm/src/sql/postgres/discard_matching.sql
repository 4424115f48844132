-- The filter: $1 topic, $2 key, $3 part of the error, $4 least and $5 greatest age in microseconds, each may be NULL;
-- $6 limit. Index: outbox_dead.
-- The update of nothing fires the trigger that wakes a dispatcher: the dead letter may have blocked its key.
WITH hint AS (UPDATE "outbox" SET seq = seq WHERE false)
DELETE FROM "outbox"
 WHERE state = 2
   AND ctid = ANY (ARRAY(
       SELECT ctid FROM "outbox"
        WHERE state = 2
          AND ($1::text IS NULL OR topic = $1) AND ($2::text IS NULL OR key = $2)
          AND ($3::text IS NULL OR strpos(last_error, $3) > 0)
          AND ($4::bigint IS NULL OR dead_at <= clock_timestamp() - $4::bigint * interval '1 microsecond')
          AND ($5::bigint IS NULL OR dead_at >= clock_timestamp() - $5::bigint * interval '1 microsecond')
        ORDER BY seq
        LIMIT $6
          FOR UPDATE SKIP LOCKED))
