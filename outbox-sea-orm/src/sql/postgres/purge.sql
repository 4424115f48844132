-- $1 group, $2 age in microseconds, $3 limit. One bounded step, oldest first. Index: inbox_processed_at.
DELETE FROM "inbox"
 WHERE ctid = ANY (ARRAY(
       SELECT ctid FROM "inbox"
        WHERE group_name = $1 AND processed_at < (SELECT clock_timestamp() - $2::bigint * interval '1 microsecond')
        ORDER BY processed_at
        LIMIT $3
          FOR UPDATE SKIP LOCKED))
