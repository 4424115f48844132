-- Five parameters a message that did not simply succeed: number, token of its range, outcome (1 retry, 2 dead, 3 release, 4 still
-- leased, apart from its range), delay in milliseconds, error. The row of parameters is repeated as often as there are messages;
-- behind them, whether numbers are kept. They become messages of the group's own table, in the given order.
WITH i (seq, token, outcome, delay, error) AS (VALUES (?, ?, ?, ?, ?)),
     k AS (SELECT *, row_number() OVER () AS place FROM i)
INSERT INTO "log_group" (seq, id, topic, key, payload, headers, created_at, state, available_at, lease, leased_until, attempts, fence,
                         last_error, history, dead_at)
SELECT CASE WHEN ? THEN l.seq END, l.id, l.topic, l.key, l.payload, l.headers, l.created_at,
       CASE k.outcome WHEN 1 THEN 1 WHEN 2 THEN 2 ELSE 0 END,
       CASE k.outcome WHEN 1 THEN CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + k.delay ELSE l.available_at END,
       CASE k.outcome WHEN 4 THEN k.token END,
       CASE k.outcome WHEN 4 THEN CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + k.delay END,
       CASE k.outcome WHEN 3 THEN 0 ELSE 1 END, 1,
       CASE WHEN k.outcome IN (1, 2) THEN k.error END,
       CASE WHEN k.outcome IN (1, 2) THEN
         json_array(json_object('attempt', 1, 'at', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), 'error', substr(k.error, 1, 200))) END,
       CASE k.outcome WHEN 2 THEN CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) END
  FROM k
 CROSS JOIN "log" AS l
 WHERE l.seq = k.seq
 ORDER BY k.place
ON CONFLICT (id) DO NOTHING
