-- $1 limit, $2 token, $3 mark (the highest seq claimed), $4 lease. FROZEN.
UPDATE floor.outbox SET leased_until = clock_timestamp() + $4, attempts = attempts + 1, lease = $2
 WHERE ctid = ANY (ARRAY(SELECT ctid FROM floor.outbox WHERE state = 0 AND seq > $3 AND leased_until <= now()
                          ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING seq, id, topic, key, payload, headers, created_at, attempts
