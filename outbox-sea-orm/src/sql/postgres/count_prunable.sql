-- $1 state: 2 dead, 3 done; $2 age in microseconds, $3 limit. What prune_dead or prune_done would remove.
SELECT count(*)
  FROM (SELECT FROM "outbox" WHERE state = 3 AND $1 = 3 AND done_at < (SELECT clock_timestamp() - $2::bigint * interval '1 microsecond')
        UNION ALL
        SELECT FROM "outbox" WHERE state = 2 AND $1 = 2 AND dead_at < (SELECT clock_timestamp() - $2::bigint * interval '1 microsecond')
        LIMIT $3) AS old
