-- ?1 id.
SELECT history FROM "outbox" WHERE id = ?1
