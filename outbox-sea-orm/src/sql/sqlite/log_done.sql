-- Two parameters a range: token, how many messages are done. The row of parameters is repeated as often as there are ranges. Those
-- of which all are done, and none was before, are gone, and named.
WITH i (token, n) AS (VALUES (?, ?))
DELETE FROM "log_ranges"
 WHERE token IN (SELECT r.token FROM i CROSS JOIN "log_ranges" AS r WHERE r.token = i.token AND r.n = i.n AND r.done IS NULL)
RETURNING token
