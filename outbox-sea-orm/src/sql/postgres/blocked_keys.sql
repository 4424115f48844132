-- $1 the key to begin with, $2 how many keys to look at, $3 whether a dead letter blocks its key, $4 how far to count. One row a
-- key with messages, and one more, where there is one, to go on with: its first message that is not over with, its
-- state, whether it is leased, in how many microseconds it is due or its lease ends, its error, and how many are behind it.
-- A walk from key to key over outbox_keys and outbox_held.
WITH RECURSIVE visited (key, n) AS (
  SELECT (SELECT min(key)
     FROM (SELECT key FROM (SELECT key FROM "outbox" WHERE state = 0 AND seq > 0 AND key >= $1 ORDER BY key, seq LIMIT 1) AS live
            UNION ALL
           SELECT key FROM (SELECT key FROM "outbox" WHERE key IS NOT NULL AND (state IN (1, 2) OR state = 0 AND available_at IS NOT NULL) AND key >= $1 ORDER BY key, state, seq LIMIT 1) AS held) AS k), 1
   UNION ALL
  SELECT (SELECT min(key)
     FROM (SELECT key FROM (SELECT key FROM "outbox" WHERE state = 0 AND seq > 0 AND key > v.key ORDER BY key, seq LIMIT 1) AS live
            UNION ALL
           SELECT key FROM (SELECT key FROM "outbox" WHERE key IS NOT NULL AND (state IN (1, 2) OR state = 0 AND available_at IS NOT NULL) AND key > v.key ORDER BY key, state, seq LIMIT 1) AS held) AS k), v.n + 1
    FROM visited AS v
   WHERE v.key IS NOT NULL AND v.n <= $2::bigint),
heads AS (
  SELECT v.key AS visited, v.n, f.*
    FROM visited AS v
    LEFT JOIN LATERAL (
         SELECT *
           FROM ((SELECT seq, key, id, topic, state, lease, available_at, leased_until, last_error
                    FROM "outbox" WHERE state = 0 AND seq > 0 AND key = v.key ORDER BY key, seq LIMIT 1)
                  UNION ALL
                 (SELECT seq, key, id, topic, state, lease, available_at, leased_until, last_error
                    FROM "outbox" WHERE state IN (1, 2) AND key = v.key AND state = 1 ORDER BY key, state, seq LIMIT 1)
                  UNION ALL
                 (SELECT seq, key, id, topic, state, lease, available_at, leased_until, last_error
                    FROM "outbox" WHERE state IN (1, 2) AND key = v.key AND state = 2 AND $3 ORDER BY key, state, seq LIMIT 1)) AS first
          ORDER BY seq LIMIT 1) AS f ON true
   WHERE v.key IS NOT NULL)
SELECT m.visited, m.id, m.topic, m.state, m.lease IS NOT NULL,
       CASE m.state WHEN 1 THEN (extract(epoch FROM least(greatest(m.available_at, '1970-01-01Z'), '9999-12-31Z') - clock_timestamp()) * 1000000)::bigint ELSE (extract(epoch FROM least(greatest(m.leased_until, '1970-01-01Z'), '9999-12-31Z') - clock_timestamp()) * 1000000)::bigint END,
       coalesce(m.last_error, ''),
       (SELECT count(*)
          FROM (SELECT 1 FROM "outbox" WHERE state = 0 AND seq > 0 AND key = m.key AND seq > m.seq LIMIT $4) AS live) +
       (SELECT count(*)
          FROM (SELECT 1 FROM "outbox" WHERE state IN (1, 2) AND key = m.key AND state = 1 AND seq > m.seq LIMIT $4) AS parked)
  FROM heads AS m
 ORDER BY m.n
