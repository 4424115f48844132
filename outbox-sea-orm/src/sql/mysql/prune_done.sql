-- Parameters: age in microseconds, limit. One bounded step, oldest first.
DELETE m
  FROM (SELECT seq
          FROM `outbox` FORCE INDEX (`outbox_agenda`)
         WHERE state = 3 AND due < (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) - ?) * 1000
         ORDER BY due
         LIMIT ?
           FOR UPDATE SKIP LOCKED) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
