-- Parameters: first and last seq, token. FROZEN.
DELETE FROM outbox WHERE seq BETWEEN ? AND ? AND state = 0 AND lease = ?
