-- ?1 highest number that is committed, ?2 how many milliseconds ago the first message is to have been enqueued, NULL to begin
-- with what is enqueued from now on. The position to begin behind.
SELECT coalesce((SELECT seq - 1 FROM "log"
                  WHERE ?2 IS NOT NULL AND seq <= ?1 AND created_at >= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?2
                  ORDER BY seq LIMIT 1), ?1)
