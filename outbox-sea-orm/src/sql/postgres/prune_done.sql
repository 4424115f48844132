-- $1 age in microseconds, $2 limit. One bounded step, oldest first. Index: outbox_done.
DELETE FROM "outbox"
 WHERE state = 3
   AND ctid = ANY (ARRAY(
       SELECT ctid FROM "outbox"
        WHERE state = 3 AND done_at < (SELECT clock_timestamp() - $1::bigint * interval '1 microsecond')
        ORDER BY done_at
        LIMIT $2
          FOR UPDATE SKIP LOCKED))
