-- ?1 group, ?2 token of a range, NULL for all of the group, ?3 whether only messages with a key. What is leased with ranges and not
-- settled: token, number, key, and its place there.
SELECT token, seq, key, place
  FROM (SELECT r.token, r.done, m.seq, m.key, row_number() OVER (PARTITION BY r.token ORDER BY m.seq) - 1 AS place
          FROM "log_ranges" AS r
         CROSS JOIN "log" AS m
         WHERE r.group_name = ?1 AND (?2 IS NULL OR r.token = ?2)
           AND m.seq > r.from_seq AND m.seq <= r.to_seq AND m.state = 0
           AND (r.topics IS NULL OR m.topic IN (SELECT value FROM json_each(r.topics))))
 WHERE (done IS NULL OR substr(done, place + 1, 1) = '0') AND (NOT ?3 OR key IS NOT NULL)
