-- $1 upper bound of seq, $2 topics or NULL. How many leases have expired, and in how many microseconds the next
-- one does. Walks the ready rows up to the bound: leases are in no index.
SELECT count(*) FILTER (WHERE leased_until <= clock_timestamp()),
       (extract(epoch FROM min(leased_until) FILTER (WHERE leased_until > clock_timestamp() AND leased_until <= '9999-12-31Z')
        - clock_timestamp()) * 1000000)::bigint
  FROM "outbox"
 WHERE state = 0 AND lease IS NOT NULL AND seq <= $1 AND ($2::text[] IS NULL OR topic = ANY ($2::text[]))
