-- Answers as stats, projected from the rows in 200 windows of 50 numbers each, one somewhere in each
-- 200th part of the table.
WITH RECURSIVE
  span (low, width) AS (SELECT coalesce((SELECT min(seq) FROM "outbox"), 0),
                               coalesce((SELECT max(seq) FROM "outbox") - (SELECT min(seq) FROM "outbox"), 0) + 1),
  windows (place, shift) AS (SELECT 0, abs(random() % 1000) UNION ALL SELECT place + 1, abs(random() % 1000) FROM windows WHERE place < 199),
  starts (first, until) AS MATERIALIZED (SELECT low + width * place / 200 + max(width / 200 - 50, 0) * shift / 1000,
                                                low + width * (place + 1) / 200 FROM span CROSS JOIN windows),
  m AS (SELECT state, topic, attempts, max(width / 10000.0, 1) AS scale,
               CASE WHEN state = 1 THEN available_at WHEN lease IS NULL THEN coalesce(available_at, created_at) ELSE leased_until END AS due_at,
               CASE state WHEN 0 THEN lease IS NULL OR leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) WHEN 1 THEN available_at <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) ELSE 0 END AS is_due
          FROM span CROSS JOIN starts CROSS JOIN "outbox"
         WHERE seq >= first AND seq < min(first + 50, until))
SELECT state, topic, CAST(round(count(*) * max(scale)) AS INTEGER), CAST(round(sum(is_due) * max(scale)) AS INTEGER),
       CAST(round(sum(state = 0 AND NOT is_due) * max(scale)) AS INTEGER),
       CAST(round(sum(state = 1 AND attempts > 0 AND NOT is_due) * max(scale)) AS INTEGER),
       CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - min(due_at) FILTER (WHERE is_due), max(attempts)
  FROM m
 GROUP BY state, topic
