-- FROZEN.
INSERT INTO outbox (id, topic, `key`, payload, headers) VALUES (?, ?, ?, ?, ?)
