-- As recover, for an ordered table: ?7 says whether a dead letter blocks its key. A message is recovered when every
-- earlier one of its key that is still to be delivered is recovered with it; the others wait, under the lease that has
-- expired.
WITH head AS MATERIALIZED (
  SELECT attempts FROM "outbox" AS c
   WHERE state = 0 AND lease IS NOT NULL AND leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) AND attempts < ?4
     AND (?5 IS NULL OR topic IN (SELECT value FROM json_each(?5)))
     AND (key IS NULL
          OR NOT EXISTS (SELECT 1 FROM "outbox" AS e WHERE e.state = 0 AND e.key = c.key AND e.seq < c.seq)
         AND NOT EXISTS (SELECT 1 FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = c.key AND p.state = 1 AND p.seq < c.seq)
         AND NOT (?7 AND EXISTS (SELECT 1 FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = c.key AND d.state = 2 AND d.seq < c.seq)))
   ORDER BY +seq LIMIT 1)
UPDATE "outbox"
   SET attempts = attempts + 1, fence = fence + 1, lease = ?2, leased_until = CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + ?3,
       history = json_insert(CASE WHEN json_array_length(history) >= 10 THEN json_remove(history, '$[0]') ELSE coalesce(history, '[]') END,
                             '$[#]', json_object('attempt', attempts, 'at', strftime('%Y-%m-%dT%H:%M:%fZ', leased_until / 1000.0, 'unixepoch'), 'error', 'lease expired'))
 WHERE seq IN (
       SELECT seq
         FROM (SELECT seq, row_number() OVER running AS place, sum(bytes) OVER running AS bytes
                 FROM (SELECT seq, length(payload) AS bytes
                         FROM "outbox" AS c
                        WHERE state = 0 AND lease IS NOT NULL AND leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
                          AND attempts = (SELECT attempts FROM head)
                          AND (?5 IS NULL OR topic IN (SELECT value FROM json_each(?5)))
                          AND (key IS NULL
          OR NOT EXISTS (SELECT 1 FROM "outbox" AS e WHERE e.state = 0 AND e.key = c.key AND e.seq < c.seq
                            AND (e.lease IS NULL OR e.leased_until > CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) OR e.attempts <> (SELECT attempts FROM head)
                                 OR ?5 IS NOT NULL AND e.topic NOT IN (SELECT value FROM json_each(?5))))
         AND NOT EXISTS (SELECT 1 FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = c.key AND p.state = 1 AND p.seq < c.seq)
         AND NOT (?7 AND EXISTS (SELECT 1 FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = c.key AND d.state = 2 AND d.seq < c.seq)))
                        ORDER BY +seq
                        LIMIT coalesce((SELECT min(?1, 1 << 3 * min(?4 - attempts - 1, 4)) FROM head), 0))
               WINDOW running AS (ORDER BY seq ROWS UNBOUNDED PRECEDING))
        WHERE bytes <= ?6 OR place = 1)
RETURNING seq, id, topic, key, payload, headers, created_at, attempts, fence, state
