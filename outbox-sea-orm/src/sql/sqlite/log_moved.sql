-- Two parameters a lease: id, token of a range. The row of parameters is repeated as often as there are leases. Where messages are
-- that were leased with a range and now have leases of their own. Index: outbox_id.
WITH i (id, token) AS (VALUES (?, ?))
SELECT o.id, o.lease, o.seq
  FROM i
 CROSS JOIN "log_group" AS o
 WHERE o.id = i.id AND o.lease = i.token AND o.state = 0
