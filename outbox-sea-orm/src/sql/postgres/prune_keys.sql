-- $1 age in microseconds, $2 limit. One bounded step, oldest first. Index: outbox_dedup_expiry.
DELETE FROM "outbox_dedup"
 WHERE ctid = ANY (ARRAY(
       SELECT ctid FROM "outbox_dedup"
        WHERE expires_at <= (SELECT clock_timestamp() - $1::bigint * interval '1 microsecond')
        ORDER BY expires_at
        LIMIT $2
          FOR UPDATE SKIP LOCKED))
