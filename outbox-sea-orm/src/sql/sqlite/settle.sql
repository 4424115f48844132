-- Five parameters a settlement: number, token, outcome (1 retry, 2 dead, 3 release), delay in milliseconds, error.
-- The row of parameters is repeated as often as there are settlements; behind them, whether rows with a key keep their
-- number. Returns the numbers that the rows had.
WITH i (seq, lease, outcome, delay, error) AS (VALUES (?, ?, ?, ?, ?)),
     k AS (SELECT *, row_number() OVER (PARTITION BY outcome = 3 ORDER BY seq) AS place FROM i)
UPDATE "outbox"
   SET state = CASE k.outcome WHEN 1 THEN 1 WHEN 2 THEN 2 ELSE 0 END,
       seq = CASE WHEN k.outcome = 3 AND NOT (? AND "outbox".key IS NOT NULL) THEN (SELECT max(seq) FROM "outbox") + k.place ELSE k.seq END,
       available_at = CASE k.outcome WHEN 1 THEN CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + k.delay ELSE "outbox".available_at END,
       attempts = CASE k.outcome WHEN 3 THEN max("outbox".attempts - 1, 0) ELSE "outbox".attempts END,
       last_error = CASE k.outcome WHEN 3 THEN "outbox".last_error ELSE k.error END,
       history = CASE k.outcome WHEN 3 THEN "outbox".history ELSE
         json_insert(CASE WHEN json_array_length("outbox".history) >= 10 THEN json_remove("outbox".history, '$[0]') ELSE coalesce("outbox".history, '[]') END,
                     '$[#]', json_object('attempt', "outbox".attempts, 'at', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), 'error', substr(k.error, 1, 200))) END,
       dead_at = CASE k.outcome WHEN 2 THEN CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) END,
       lease = NULL, leased_until = NULL
  FROM k
 WHERE "outbox".state = 0 AND "outbox".seq = k.seq AND "outbox".lease = k.lease
RETURNING id
