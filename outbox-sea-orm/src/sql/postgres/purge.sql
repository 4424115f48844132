-- $1 age in microseconds, $2 limit. One bounded step, oldest first. Index: inbox_processed_at.
DELETE FROM "inbox"
 WHERE ctid = ANY (ARRAY(
       SELECT ctid FROM "inbox"
        WHERE processed_at < clock_timestamp() - $1::bigint * interval '1 microsecond'
        ORDER BY processed_at
        LIMIT $2
          FOR UPDATE SKIP LOCKED))
