-- As settle_done, for a table that keeps what is delivered. The token stays in the row, where it means nothing any more.
WITH i (seq, lease) AS (VALUES (?, ?))
UPDATE "outbox" SET state = 3, done_at = CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
 WHERE seq IN (SELECT m.seq FROM i CROSS JOIN "outbox" AS m WHERE m.seq = i.seq AND m.lease = i.lease AND m.state = 0)
RETURNING id
