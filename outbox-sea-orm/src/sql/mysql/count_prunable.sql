-- Parameters: state (2 dead, 3 done), age in microseconds, twice; limit. What prune_dead or prune_done would remove.
SELECT COUNT(*)
  FROM (SELECT 1 AS one
          FROM `outbox` FORCE INDEX (`outbox_agenda`)
         WHERE state = 2 AND ? = 2 AND dead_at < UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND
            OR state = 3 AND ? = 3 AND due < (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) - ?) * 1000
         LIMIT ?) AS prunable
