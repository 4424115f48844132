-- $1 age in microseconds, $2 limit. What prune_keys would remove.
SELECT count(*)
  FROM (SELECT FROM "outbox_dedup"
         WHERE expires_at <= (SELECT clock_timestamp() - $1::bigint * interval '1 microsecond')
         LIMIT $2) AS old
