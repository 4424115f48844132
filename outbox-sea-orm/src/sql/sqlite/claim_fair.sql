-- ?1 limit, ?2 token, ?3 lease in milliseconds, ?4 max_attempts, ?5 topics as a JSON array or NULL, ?6 max_bytes,
-- ?7 the lane where the last claim ended. Takes the first ready row of each lane, then the second of each, and so on,
-- beginning behind ?7 and around. One statement, hence one write lock. RETURNING has no order: the caller sorts by seq.
WITH RECURSIVE
-- The first row of each lane, one probe of outbox_lanes each, whether it is of a served topic, as then all of its lane
-- are, and how many such lanes there were before.
walk (lane, seq, is_fit, turn, is_around) AS (
  SELECT ?7, 0, 0, 0, 0
   UNION ALL
  SELECT m.lane, m.seq, ?5 IS NULL OR m.topic IN (SELECT value FROM json_each(?5)), w.turn + w.is_fit, m.lane <= ?7
    FROM walk AS w
    JOIN "outbox" AS m
      ON m.seq = coalesce((SELECT seq FROM "outbox" WHERE state = 0 AND lease IS NULL AND lane > w.lane ORDER BY lane, seq LIMIT 1),
                          (SELECT seq FROM "outbox" WHERE state = 0 AND lease IS NULL AND lane <= ?7 AND NOT w.is_around ORDER BY lane, seq LIMIT 1))
   WHERE w.turn + w.is_fit < ?1 AND (m.lane <= ?7 OR NOT w.is_around)),
-- The ORDER BY makes the recursion go round by round, the LIMIT ends it.
rounds (seq, lane, turn, round) AS (
  SELECT seq, lane, turn, 1 FROM walk WHERE is_fit
   UNION ALL
  SELECT m.seq, r.lane, r.turn, r.round + 1
    FROM rounds AS r
    JOIN "outbox" AS m
      ON m.seq = (SELECT seq FROM "outbox" WHERE state = 0 AND lease IS NULL AND lane = r.lane AND seq > r.seq ORDER BY lane, seq LIMIT 1)
   ORDER BY 4, 3
   LIMIT ?1)
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
         FROM (SELECT r.seq, row_number() OVER running AS place, sum(length(m.payload)) OVER running AS bytes
                 FROM rounds AS r JOIN "outbox" AS m ON m.seq = r.seq
               WINDOW running AS (ORDER BY r.round, r.turn ROWS UNBOUNDED PRECEDING))
        WHERE bytes <= ?6 OR place = 1)
RETURNING seq, id, topic, key, payload, headers, created_at, attempts, fence, state
