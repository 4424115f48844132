-- Two parameters a lease: number, token. The row of parameters is repeated as often as there are leases.
WITH i (seq, lease) AS (VALUES (?, ?))
DELETE FROM "outbox"
 WHERE seq IN (SELECT m.seq FROM i CROSS JOIN "outbox" AS m WHERE m.seq = i.seq AND m.lease = i.lease AND m.state = 0)
RETURNING id
