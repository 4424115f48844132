-- $1 id, $2 key, $3 whether a dead letter blocks its key. Removes the first message of the key, if it waits or is dead.
-- The update of nothing fires the trigger that wakes a dispatcher.
WITH hint AS (UPDATE "outbox" SET seq = seq WHERE false)
DELETE FROM "outbox" AS m
 WHERE m.id = $1 AND m.key = $2 AND (m.state = 1 OR $3 AND m.state = 2)
   AND NOT EXISTS (SELECT 1 FROM "outbox" AS e WHERE e.state = 0 AND e.seq > 0 AND e.key = m.key AND e.seq < m.seq)
   AND NOT EXISTS (SELECT 1 FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = m.key AND p.state = 1 AND p.seq < m.seq)
   AND NOT ($3 AND EXISTS (SELECT 1 FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = m.key AND d.state = 2 AND d.seq < m.seq))
