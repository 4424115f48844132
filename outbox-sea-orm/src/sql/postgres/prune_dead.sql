-- $1 age in microseconds, $2 limit. One bounded step. Index: outbox_dead.
-- The update of nothing fires the trigger that wakes a dispatcher: the dead letter may have blocked its key.
WITH hint AS (UPDATE "outbox" SET seq = seq WHERE false)
DELETE FROM "outbox"
 WHERE state = 2
   AND ctid = ANY (ARRAY(
       SELECT ctid FROM "outbox"
        WHERE state = 2 AND dead_at < (SELECT clock_timestamp() - $1::bigint * interval '1 microsecond')
        ORDER BY seq
        LIMIT $2
          FOR UPDATE SKIP LOCKED))
