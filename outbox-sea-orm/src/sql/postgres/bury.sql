-- $1 limit, $2 max_attempts, $3 topics or NULL. Messages whose lease expired in their last attempt become dead
-- without being handed out again.
UPDATE "outbox" AS m
   SET state = 2, lease = NULL, leased_until = NULL, dead_at = clock_timestamp(),
       last_error = 'lease expired in attempt ' || m.attempts,
       history = (CASE WHEN jsonb_array_length(m.history) >= 10 THEN m.history - 0 ELSE coalesce(m.history, '[]') END)
                 || jsonb_build_object('attempt', m.attempts, 'at', m.leased_until, 'error', 'lease expired')
 WHERE m.state = 0
   AND m.ctid = ANY (ARRAY(
       SELECT ctid FROM "outbox"
        WHERE state = 0 AND lease IS NOT NULL AND leased_until <= clock_timestamp() AND attempts >= $2
          AND ($3::text[] IS NULL OR topic = ANY ($3::text[]))
        ORDER BY seq
        LIMIT $1
          FOR UPDATE SKIP LOCKED))
