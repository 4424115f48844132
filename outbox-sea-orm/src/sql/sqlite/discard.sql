-- One parameter an id.
DELETE FROM "outbox" WHERE state = 2 AND id IN (VALUES (?)) RETURNING id
