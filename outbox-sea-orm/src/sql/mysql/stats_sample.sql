-- Answers as stats, projected from the rows in 200 windows of 50 numbers each, one somewhere in each 200th part of the table: each
-- number is looked up by itself, for a range that depends on another row would be read from the beginning. LIMIT keeps the
-- windows from being computed anew for each use, each time with another chance.
WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 199)
SELECT state, topic, CAST(ROUND(COUNT(*) * MAX(scale)) AS SIGNED), CAST(ROUND(SUM(is_due) * MAX(scale)) AS SIGNED), CAST(ROUND(SUM(is_claimed) * MAX(scale)) AS SIGNED),
       CAST(ROUND(SUM(is_retrying) * MAX(scale)) AS SIGNED),
       TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) - MIN(CASE WHEN is_due THEN since END) DIV 1000, CAST(MAX(attempts) AS SIGNED)
  FROM (SELECT IF(t.state = 4, 0, t.state) AS state, t.topic, t.attempts, IF(t.state = 0, t.due_since, t.due) AS since, w.scale,
               t.state = 0 OR t.state IN (1, 4) AND t.due <= w.now AS is_due,
               t.state = 4 AND t.due > w.now AS is_claimed,
               t.state = 1 AND t.attempts > 0 AND t.due > w.now AS is_retrying
          FROM (SELECT CAST(low + width * i DIV 200 + FLOOR(GREATEST(width DIV 200 - 50, 0) * RAND()) AS SIGNED) AS first,
                       CAST(low + width * (i + 1) DIV 200 AS SIGNED) AS until, GREATEST(width / 10000, 1) AS scale,
                       TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AS now
                  FROM (SELECT MIN(seq) AS low, MAX(seq) - MIN(seq) + 1 AS width FROM `outbox`) AS span, n
                 LIMIT 200) AS w
          STRAIGHT_JOIN (SELECT i FROM n WHERE i < 50 LIMIT 50) AS o
          STRAIGHT_JOIN `outbox` AS t FORCE INDEX (PRIMARY) ON t.seq = w.first + o.i AND w.first + o.i < w.until) AS m
 GROUP BY state, topic
