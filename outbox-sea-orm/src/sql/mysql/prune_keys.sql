-- Parameters: age in microseconds, limit. One bounded step, oldest first.
DELETE m
  FROM (SELECT dedup_key
          FROM `outbox_dedup` FORCE INDEX (`outbox_dedup_expiry`)
         WHERE expires_at <= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND
         ORDER BY expires_at
         LIMIT ?
           FOR UPDATE SKIP LOCKED) AS p
  STRAIGHT_JOIN `outbox_dedup` AS m FORCE INDEX (PRIMARY) ON m.dedup_key = p.dedup_key
