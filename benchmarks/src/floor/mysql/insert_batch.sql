-- `, (?, ?, ?, ?, ?)` follows for each further row of the batch. FROZEN.
INSERT INTO outbox (id, topic, `key`, payload, headers) VALUES (?, ?, ?, ?, ?)
