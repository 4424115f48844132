-- Parameters: age in microseconds, limit. One bounded step.
DELETE m
  FROM (SELECT seq
          FROM `outbox` FORCE INDEX (`outbox_agenda`)
         WHERE state = 2 AND dead_at < UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND
         ORDER BY due
         LIMIT ?
           FOR UPDATE SKIP LOCKED) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
