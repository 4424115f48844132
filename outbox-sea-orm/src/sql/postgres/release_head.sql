-- $1 id, $2 key, $3 whether a dead letter blocks its key. Makes the first message of the key ready at its place, if it waits or
-- is dead; a dead one with all its attempts, and as redrive not while its id is in use again on a partitioned table. Naming seq
-- fires the trigger that wakes a dispatcher.
UPDATE "outbox" AS m
   SET seq = m.seq, attempts = CASE m.state WHEN 2 THEN 0 ELSE m.attempts END, state = 0, dead_at = NULL, lease = NULL,
       leased_until = NULL, available_at = clock_timestamp()
 WHERE m.id = $1 AND m.key = $2
   AND (m.state = 1 OR $3 AND m.state = 2 AND NOT EXISTS (SELECT FROM "outbox" AS u WHERE u.id = m.id AND u.state IN (0, 1) OFFSET 0))
   AND NOT EXISTS (SELECT 1 FROM "outbox" AS e WHERE e.state = 0 AND e.seq > 0 AND e.key = m.key AND e.seq < m.seq)
   AND NOT EXISTS (SELECT 1 FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = m.key AND p.state = 1 AND p.seq < m.seq)
   AND NOT ($3 AND EXISTS (SELECT 1 FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = m.key AND d.state = 2 AND d.seq < m.seq))
