-- Whether parked rows are due, and in how many microseconds the next one is. Index: outbox_parked.
SELECT coalesce(min(available_at) <= clock_timestamp(), false),
       (extract(epoch FROM min(available_at) - clock_timestamp()) * 1000000)::bigint
  FROM "outbox"
 WHERE state = 1
