-- $1 ids.
-- The update of nothing fires the trigger that wakes a dispatcher: the dead letter may have blocked its key.
WITH hint AS (UPDATE "outbox" SET seq = seq WHERE false)
DELETE FROM "outbox" WHERE id = ANY ($1::uuid[]) AND state = 2 RETURNING id
