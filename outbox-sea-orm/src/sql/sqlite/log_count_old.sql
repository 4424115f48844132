-- ?1 age in milliseconds, ?2 how many rows to look at. What log_forget would delete.
SELECT count(*)
  FROM (SELECT created_at
          FROM "log"
         WHERE seq <= coalesce((SELECT min(position) FROM "log_groups"), 9223372036854775807)
           AND seq <= coalesce((SELECT min(from_seq) FROM "log_ranges"), 9223372036854775807)
         ORDER BY seq
         LIMIT ?2)
 WHERE created_at < CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?1
