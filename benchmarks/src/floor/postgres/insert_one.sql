-- FROZEN.
INSERT INTO floor.outbox (id, topic, key, payload, headers) VALUES ($1, $2, $3, $4, $5)
