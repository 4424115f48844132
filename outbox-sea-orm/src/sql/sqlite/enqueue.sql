-- Six parameters a row: id, topic, key, payload, headers, delay in milliseconds. The row of parameters is repeated
-- as often as there are drafts. A row fewer than drafts means that an id was there; a log does not notice.
WITH d (id, topic, key, payload, headers, delay) AS (VALUES (?, ?, ?, ?, ?, ?))
INSERT INTO "outbox" (id, topic, key, payload, headers, state, available_at)
SELECT id, topic, key, payload, headers, delay > 0, CASE WHEN delay > 0 THEN CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + delay END
  FROM d WHERE true
ON CONFLICT DO NOTHING
