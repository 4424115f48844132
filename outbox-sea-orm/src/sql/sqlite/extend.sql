-- Two parameters a lease: number, token; then the lease in milliseconds. The row of parameters is repeated.
WITH i (seq, lease) AS (VALUES (?, ?))
UPDATE "outbox" SET leased_until = CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + ?
 WHERE seq IN (SELECT m.seq FROM i CROSS JOIN "outbox" AS m WHERE m.seq = i.seq AND m.lease = i.lease AND m.state = 0)
RETURNING id
