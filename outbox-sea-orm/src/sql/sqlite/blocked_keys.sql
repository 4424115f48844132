-- ?1 the key to begin with, ?2 how many keys to look at, ?3 whether a dead letter blocks its key, ?4 how far to count. One row a
-- key with messages, and one more, where there is one, to go on with: its first message that is not over with, its
-- state, whether it is leased, in how many milliseconds it is due or its lease ends, its error, and how many are behind it.
-- A walk from key to key over outbox_keys and outbox_held.
WITH RECURSIVE visited (key, n) AS (
  SELECT (SELECT min(key)
     FROM (SELECT key FROM (SELECT key FROM "outbox" WHERE state = 0 AND key >= ?1 ORDER BY key, seq LIMIT 1) AS live
            UNION ALL
           SELECT key FROM (SELECT key FROM "outbox" WHERE state IN (1, 2) AND key IS NOT NULL AND key >= ?1 ORDER BY key, state, seq LIMIT 1) AS held) AS k), 1
   UNION ALL
  SELECT (SELECT min(key)
     FROM (SELECT key FROM (SELECT key FROM "outbox" WHERE state = 0 AND key > v.key ORDER BY key, seq LIMIT 1) AS live
            UNION ALL
           SELECT key FROM (SELECT key FROM "outbox" WHERE state IN (1, 2) AND key IS NOT NULL AND key > v.key ORDER BY key, state, seq LIMIT 1) AS held) AS k), v.n + 1
    FROM visited AS v
   WHERE v.key IS NOT NULL AND v.n <= ?2),
heads (key, n, seq) AS (
  SELECT v.key, v.n, (SELECT min(seq)
            FROM (SELECT seq FROM (SELECT seq FROM "outbox" WHERE state = 0 AND key = v.key ORDER BY key, seq LIMIT 1) AS live
                   UNION ALL
                  SELECT seq FROM (SELECT seq FROM "outbox" WHERE state IN (1, 2) AND key = v.key AND state = 1 ORDER BY key, state, seq LIMIT 1) AS parked
                   UNION ALL
                  SELECT seq FROM (SELECT seq FROM "outbox" WHERE state IN (1, 2) AND key = v.key AND state = 2 AND ?3 ORDER BY key, state, seq LIMIT 1) AS dead) AS f)
    FROM visited AS v)
SELECT h.key, m.id, m.topic, m.state, m.lease IS NOT NULL, CASE m.state WHEN 1 THEN m.available_at ELSE m.leased_until END - CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER),
       coalesce(m.last_error, ''),
       (SELECT count(*)
          FROM (SELECT 1 FROM "outbox" WHERE state = 0 AND key = m.key AND seq > m.seq LIMIT ?4) AS live) +
       (SELECT count(*)
          FROM (SELECT 1 FROM "outbox" WHERE state IN (1, 2) AND key = m.key AND state = 1 AND seq > m.seq LIMIT ?4) AS parked)
  FROM heads AS h
  LEFT JOIN "outbox" AS m ON m.seq = h.seq
 WHERE h.key IS NOT NULL
 ORDER BY h.n
