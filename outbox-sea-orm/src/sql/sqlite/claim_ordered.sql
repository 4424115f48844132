-- ?1 limit, ?2 token, ?3 lease in milliseconds, ?4 max_attempts, ?5 topics as a JSON array or NULL, ?6 max_bytes,
-- ?7 the key where the last claim ended, ?8 whether a dead letter blocks its key, ?9 how many of the messages may be
-- without a key. Walks from key to key, beginning behind ?7 and around, and takes the first message of each key that
-- is claimable; where these are fewer than the limit, it takes a run of each key. One statement, hence one write lock.
-- RETURNING has no order: the caller sorts by seq.
WITH RECURSIVE
-- Messages without a key have no order.
keyless (seq) AS MATERIALIZED (
  SELECT seq FROM "outbox"
   WHERE state = 0 AND lease IS NULL AND key IS NULL AND (?5 IS NULL OR topic IN (SELECT value FROM json_each(?5)))
   ORDER BY key, seq
   LIMIT ?9),
size (n) AS MATERIALIZED (SELECT ?1 - count(*) FROM keyless),
-- The first row of each key that is ready or claimed, whether it is claimable, and how many claimable ones there were.
above (key, seq, is_fit, n) AS (
  SELECT m.key, m.seq, m.lease IS NULL AND (?5 IS NULL OR m.topic IN (SELECT value FROM json_each(?5)))
         AND NOT EXISTS (SELECT 1 FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = m.key AND p.state = 1 AND p.seq < m.seq)
         AND NOT (?8 AND EXISTS (SELECT 1 FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = m.key AND d.state = 2 AND d.seq < m.seq)),
         0
    FROM "outbox" AS m
   WHERE m.seq = (SELECT seq FROM "outbox" WHERE state = 0 AND key > ?7 ORDER BY key, seq LIMIT 1)
   UNION ALL
  SELECT m.key, m.seq, m.lease IS NULL AND (?5 IS NULL OR m.topic IN (SELECT value FROM json_each(?5)))
         AND NOT EXISTS (SELECT 1 FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = m.key AND p.state = 1 AND p.seq < m.seq)
         AND NOT (?8 AND EXISTS (SELECT 1 FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = m.key AND d.state = 2 AND d.seq < m.seq)),
         a.n + a.is_fit
    FROM above AS a
    JOIN "outbox" AS m ON m.seq = (SELECT seq FROM "outbox" WHERE state = 0 AND key > a.key ORDER BY key, seq LIMIT 1)
   WHERE a.n + a.is_fit < (SELECT n FROM size)),
below (key, seq, is_fit, n) AS (
  SELECT m.key, m.seq, m.lease IS NULL AND (?5 IS NULL OR m.topic IN (SELECT value FROM json_each(?5)))
         AND NOT EXISTS (SELECT 1 FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = m.key AND p.state = 1 AND p.seq < m.seq)
         AND NOT (?8 AND EXISTS (SELECT 1 FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = m.key AND d.state = 2 AND d.seq < m.seq)),
         (SELECT count(*) FROM above WHERE is_fit)
    FROM "outbox" AS m
   WHERE (SELECT count(*) FROM above WHERE is_fit) < (SELECT n FROM size)
     AND m.seq = (SELECT seq FROM "outbox" WHERE state = 0 AND key <= ?7 ORDER BY key, seq LIMIT 1)
   UNION ALL
  SELECT m.key, m.seq, m.lease IS NULL AND (?5 IS NULL OR m.topic IN (SELECT value FROM json_each(?5)))
         AND NOT EXISTS (SELECT 1 FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = m.key AND p.state = 1 AND p.seq < m.seq)
         AND NOT (?8 AND EXISTS (SELECT 1 FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = m.key AND d.state = 2 AND d.seq < m.seq)),
         b.n + b.is_fit
    FROM below AS b
    JOIN "outbox" AS m ON m.seq = (SELECT seq FROM "outbox" WHERE state = 0 AND key > b.key AND key <= ?7 ORDER BY key, seq LIMIT 1)
   WHERE b.n + b.is_fit < (SELECT n FROM size)),
heads (seq, turn) AS MATERIALIZED (
  SELECT seq, row_number() OVER ()
    FROM (SELECT seq, is_fit FROM above UNION ALL SELECT seq, is_fit FROM below)
   WHERE is_fit
   LIMIT (SELECT n FROM size)),
-- The rows behind each head up to the first that is not claimable, whatever its topic, and where a dead letter blocks,
-- up to the first that this claim makes dead.
runs (seq, turn, place) AS (
  SELECT seq, turn, 1 FROM heads WHERE (SELECT n FROM size) > 0
   UNION ALL
  SELECT m.seq, r.turn, r.place + 1
    FROM runs AS r
    JOIN "outbox" AS l ON l.seq = r.seq
    JOIN "outbox" AS m ON m.seq = (SELECT seq FROM "outbox" WHERE state = 0 AND key = l.key AND seq > l.seq ORDER BY key, seq LIMIT 1)
   WHERE r.place < (SELECT n FROM size) / (SELECT count(*) FROM heads)
     AND NOT (?8 AND l.attempts >= ?4)
     AND m.lease IS NULL AND (?5 IS NULL OR m.topic IN (SELECT value FROM json_each(?5)))
         AND NOT EXISTS (SELECT 1 FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = m.key AND p.state = 1 AND p.seq < m.seq)
         AND NOT (?8 AND EXISTS (SELECT 1 FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = m.key AND d.state = 2 AND d.seq < m.seq))),
keyed AS MATERIALIZED (SELECT seq, turn, place FROM runs),
-- What is left of the limit is filled up with messages without a key.
rest (seq) AS (
  SELECT seq FROM "outbox"
   WHERE state = 0 AND lease IS NULL AND key IS NULL AND seq > coalesce((SELECT max(seq) FROM keyless), 0) AND (?5 IS NULL OR topic IN (SELECT value FROM json_each(?5)))
   ORDER BY key, seq
   LIMIT (SELECT n FROM size) - (SELECT count(*) FROM keyed)),
chosen (seq, turn, place) AS (
  SELECT seq, turn, place FROM keyed
   UNION ALL
  SELECT seq, 0, row_number() OVER (ORDER BY seq) FROM (SELECT seq FROM keyless UNION ALL SELECT seq FROM rest))
UPDATE "outbox"
   SET attempts = CASE WHEN attempts < ?4 THEN attempts + 1 ELSE attempts END,
       fence = fence + 1,
       lease = CASE WHEN attempts < ?4 THEN ?2 END,
       leased_until = CASE WHEN attempts < ?4 THEN CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + ?3 END,
       state = CASE WHEN attempts < ?4 THEN 0 ELSE 2 END,
       dead_at = CASE WHEN attempts < ?4 THEN NULL ELSE CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) END,
       last_error = CASE WHEN attempts < ?4 THEN last_error ELSE 'attempt limit ' || ?4 || ' reached' END
 WHERE seq IN (
       SELECT seq
         FROM (SELECT c.seq, row_number() OVER running AS place, sum(length(m.payload)) OVER running AS bytes
                 FROM chosen AS c JOIN "outbox" AS m ON m.seq = c.seq
               WINDOW running AS (ORDER BY c.place, c.turn ROWS UNBOUNDED PRECEDING))
        WHERE bytes <= ?6 OR place = 1)
RETURNING seq, id, topic, key, payload, headers, created_at, attempts, fence, state
