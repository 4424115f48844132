-- One parameter a range: token. It is repeated as often as there are ranges. Those that are there: token, both ends, how many
-- messages, and which of them are settled, NULL for none.
WITH i (token) AS (VALUES (?))
SELECT r.token, r.from_seq, r.to_seq, r.n, r.done
  FROM i
 CROSS JOIN "log_ranges" AS r
 WHERE r.token = i.token
