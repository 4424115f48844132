-- Parameters: age in microseconds, limit. What prune_keys would remove.
SELECT COUNT(*)
  FROM (SELECT 1 AS one
          FROM `outbox_dedup` FORCE INDEX (`outbox_dedup_expiry`)
         WHERE expires_at <= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND
         LIMIT ?) AS expired
