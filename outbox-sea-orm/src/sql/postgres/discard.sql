-- $1 ids.
DELETE FROM "outbox" WHERE id = ANY ($1::uuid[]) AND state = 2 RETURNING id
