-- Parameters: group, age in microseconds, limit. One bounded step, oldest first. Index: inbox_processed_at.
DELETE FROM `inbox`
 WHERE group_name = ? AND processed_at < UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND
 ORDER BY processed_at
 LIMIT ?
