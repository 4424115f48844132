-- ?1 limit, ?2 token, ?3 lease in milliseconds, ?4 max_attempts, ?5 topics as a JSON array or NULL, ?6 max_bytes.
-- One statement, hence one write lock. RETURNING has no order: the caller sorts by seq. Index: outbox_ready.
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
         FROM (SELECT seq, row_number() OVER running AS place, sum(bytes) OVER running AS bytes
                 FROM (SELECT seq, length(payload) AS bytes
                         FROM "outbox"
                        WHERE state = 0 AND lease IS NULL
                          AND (?5 IS NULL OR topic IN (SELECT value FROM json_each(?5)))
                        ORDER BY seq
                        LIMIT ?1)
               WINDOW running AS (ORDER BY seq ROWS UNBOUNDED PRECEDING))
        WHERE bytes <= ?6 OR place = 1)
RETURNING seq, id, topic, key, payload, headers, created_at, attempts, fence, state
