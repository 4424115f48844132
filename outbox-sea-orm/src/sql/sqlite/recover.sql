-- ?1 limit, ?2 token, ?3 lease in milliseconds, ?4 max_attempts, ?5 topics as a JSON array or NULL, ?6 max_bytes.
-- Claims messages whose lease expired, apart from all others: one of them may have killed its process. As many as
-- the first one's attempts allow (outbox_core::recovery_group) and of as many attempts. The row keeps its seq. The pluses keep
-- the planner on outbox_leased.
WITH head AS MATERIALIZED (
  SELECT attempts FROM "outbox"
   WHERE state = 0 AND lease IS NOT NULL AND leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) AND attempts < ?4
     AND (?5 IS NULL OR topic IN (SELECT value FROM json_each(?5)))
   ORDER BY +seq LIMIT 1)
UPDATE "outbox"
   SET attempts = attempts + 1, fence = fence + 1, lease = ?2, leased_until = CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + ?3,
       history = json_insert(CASE WHEN json_array_length(history) >= 10 THEN json_remove(history, '$[0]') ELSE coalesce(history, '[]') END,
                             '$[#]', json_object('attempt', attempts, 'at', strftime('%Y-%m-%dT%H:%M:%fZ', leased_until / 1000.0, 'unixepoch'), 'error', 'lease expired'))
 WHERE seq IN (
       SELECT seq
         FROM (SELECT seq, row_number() OVER running AS place, sum(bytes) OVER running AS bytes
                 FROM (SELECT seq, length(payload) AS bytes
                         FROM "outbox"
                        WHERE state = 0 AND lease IS NOT NULL AND leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
                          AND attempts = (SELECT attempts FROM head)
                          AND (?5 IS NULL OR topic IN (SELECT value FROM json_each(?5)))
                        ORDER BY +seq
                        LIMIT coalesce((SELECT min(?1, 1 << 3 * min(?4 - attempts - 1, 4)) FROM head), 0))
               WINDOW running AS (ORDER BY seq ROWS UNBOUNDED PRECEDING))
        WHERE bytes <= ?6 OR place = 1)
RETURNING seq, id, topic, key, payload, headers, created_at, attempts, fence, state
