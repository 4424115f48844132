-- ?1 age in milliseconds, ?2 how many rows to look at. Deletes what is older and what every group has read and settled, or handed
-- on to its own table. It looks at the lowest numbers only, so that it costs the same however much stays.
DELETE FROM "log"
 WHERE seq IN (
       SELECT seq
         FROM (SELECT seq, created_at
                 FROM "log"
                WHERE seq <= coalesce((SELECT min(position) FROM "log_groups"), 9223372036854775807)
                  AND seq <= coalesce((SELECT min(from_seq) FROM "log_ranges"), 9223372036854775807)
                ORDER BY seq
                LIMIT ?2)
        WHERE created_at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?1)
