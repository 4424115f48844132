-- $1 id.
SELECT history::text FROM "outbox" WHERE id = $1
