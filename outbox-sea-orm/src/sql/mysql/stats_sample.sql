-- Answers as stats for all rows: an exact count, which walks the index.
SELECT state, topic, COUNT(*), CAST(SUM(is_due) AS SIGNED), CAST(SUM(is_claimed) AS SIGNED), CAST(SUM(0) AS SIGNED),
       TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) - MIN(CASE WHEN is_due THEN since END) DIV 1000, 0
  FROM (SELECT IF(state = 4, 0, state) AS state, topic, due AS since,
               state = 0 OR state IN (1, 4) AND due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AS is_due,
               state = 4 AND due > TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AS is_claimed
          FROM `outbox` FORCE INDEX (`outbox_agenda`)) AS m
 GROUP BY state, topic
