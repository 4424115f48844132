-- $1 group. How many of its ranges have expired, and in how many microseconds the next one does.
SELECT count(*) FILTER (WHERE leased_until <= clock_timestamp()),
       (extract(epoch FROM min(leased_until) FILTER (WHERE leased_until > clock_timestamp()) - clock_timestamp()) * 1000000)::bigint
  FROM "log_ranges"
 WHERE group_name = $1
