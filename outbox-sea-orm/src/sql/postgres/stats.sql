-- One row a topic: pending, due, claimed, dead, age of the oldest due message in microseconds, highest attempt.
SELECT topic,
       count(*) FILTER (WHERE state = 1 OR state = 0 AND (lease IS NULL OR leased_until <= clock_timestamp())),
       count(*) FILTER (WHERE CASE state WHEN 0 THEN lease IS NULL OR leased_until <= clock_timestamp()
                                         WHEN 1 THEN available_at <= clock_timestamp() ELSE false END),
       count(*) FILTER (WHERE state = 0 AND leased_until > clock_timestamp()),
       count(*) FILTER (WHERE state = 2),
       (extract(epoch FROM clock_timestamp() - min(least(greatest(created_at, '1970-01-01Z'), '9999-12-31Z')) FILTER (
         WHERE CASE state WHEN 0 THEN lease IS NULL OR leased_until <= clock_timestamp()
                          WHEN 1 THEN available_at <= clock_timestamp() ELSE false END)) * 1000000)::bigint,
       coalesce(max(attempts) FILTER (WHERE state < 2), 0)
  FROM "outbox"
 GROUP BY topic
