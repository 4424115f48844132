-- Parameter, five times: how many rows of each state to look at; claimed rows are of state 0 here. One row a state and
-- topic: rows, due, claimed, waiting for a retry, for how many microseconds the longest-due one has been due,
-- highest attempt. Each state is read from its index, so
-- that this costs the same however large the table is; a state that fills its limit is counted by stats_sample. Of dead and done
-- rows nothing but the index is read.
SELECT state, topic, COUNT(*), CAST(SUM(is_due) AS SIGNED), CAST(SUM(is_claimed) AS SIGNED), CAST(SUM(is_retrying) AS SIGNED),
       TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) - MIN(CASE WHEN is_due THEN since END) DIV 1000, CAST(MAX(attempts) AS SIGNED)
  FROM ((SELECT 0 AS state, topic, attempts, due_since AS since, 1 AS is_due, 0 AS is_claimed, 0 AS is_retrying FROM `outbox` FORCE INDEX (`outbox_agenda`) WHERE state = 0 ORDER BY due, topic, seq LIMIT ?)
        UNION ALL
        (SELECT 0 AS state, topic, attempts, due, due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000, due > TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000, 0 FROM `outbox` FORCE INDEX (`outbox_agenda`) WHERE state = 4 ORDER BY due, topic, seq LIMIT ?)
        UNION ALL
        (SELECT 1 AS state, topic, attempts, due, due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000, 0, attempts > 0 AND due > TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 FROM `outbox` FORCE INDEX (`outbox_agenda`) WHERE state = 1 ORDER BY due, topic, seq LIMIT ?)
        UNION ALL
        (SELECT 2 AS state, topic, 0, NULL, 0, 0, 0 FROM `outbox` FORCE INDEX (`outbox_agenda`) WHERE state = 2 ORDER BY due, topic, seq LIMIT ?)
        UNION ALL
        (SELECT 3 AS state, topic, 0, NULL, 0, 0, 0 FROM `outbox` FORCE INDEX (`outbox_agenda`) WHERE state = 3 ORDER BY due, topic, seq LIMIT ?)) AS m
 GROUP BY state, topic
