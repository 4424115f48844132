-- ?1 limit, ?2 max_attempts, ?3 topics as a JSON array or NULL. Messages whose lease expired in their last attempt
-- become dead without being handed out again. The plus keeps the planner on outbox_leased.
UPDATE "outbox"
   SET state = 2, lease = NULL, leased_until = NULL, dead_at = CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER), last_error = 'lease expired in attempt ' || attempts,
       history = json_insert(CASE WHEN json_array_length(history) >= 10 THEN json_remove(history, '$[0]') ELSE coalesce(history, '[]') END,
                             '$[#]', json_object('attempt', attempts, 'at', strftime('%Y-%m-%dT%H:%M:%fZ', leased_until / 1000.0, 'unixepoch'), 'error', 'lease expired'))
 WHERE seq IN (SELECT seq FROM "outbox"
                WHERE state = 0 AND lease IS NOT NULL AND leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) AND attempts >= ?2
                  AND (?3 IS NULL OR topic IN (SELECT value FROM json_each(?3)))
                ORDER BY +seq
                LIMIT ?1)
