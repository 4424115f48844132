-- As log_claim_mixed, for an ordered log. A message whose key is held goes to the group's own table under its number in the log,
-- with all others of its key; and what is leased of the key with a range moves there, too, under its lease. In that table
-- claim_ordered keeps the order; docs/decisions/072 says why nothing can slip between. The last columns are the place in the range, and
-- how many rows are behind the position now.
-- Whoever waited for the position sees a newer row than its snapshot has: ranges and own table may be newer too, so it takes
-- nothing and says so.
WITH cursor AS MATERIALIZED (
  SELECT ctid AS tid, position, topics FROM "log_groups" WHERE name = $1 AND "this_session" = ANY ($9::text[]) FOR UPDATE),
known AS MATERIALIZED (
  SELECT position, topics FROM cursor WHERE tid = (SELECT ctid FROM "log_groups" WHERE name = $1)),
-- What is leased with ranges and not settled, by its place there.
leased AS MATERIALIZED (
  SELECT l.token, l.seq, l.key, l.place
    FROM (SELECT r.token, r.done, m.seq, m.key, row_number() OVER (PARTITION BY r.token ORDER BY m.seq) - 1 AS place
            FROM "log_ranges" AS r
           CROSS JOIN LATERAL (SELECT seq, key FROM "log"
                                WHERE seq > r.from_seq AND seq <= r.to_seq
                                  AND (r.topics IS NULL OR topic = ANY (r.topics))) AS m
           WHERE r.group_name = $1 AND (SELECT EXISTS (SELECT FROM known))) AS l
   WHERE l.key IS NOT NULL AND (l.done IS NULL OR get_bit(l.done, l.place::integer) = 0)),
examined AS MATERIALIZED (
  SELECT r.seq, r.key, r.bytes, c.topics IS NULL OR r.topic = ANY (c.topics) AS is_wanted,
         r.state = 0 AND ($5::text[] IS NULL OR r.topic = ANY ($5::text[])) AS is_served
    FROM known AS c
   CROSS JOIN LATERAL (SELECT seq, topic, key, state, octet_length(payload) AS bytes
                         FROM "log"
                        WHERE seq > c.position AND seq <= $7
                        ORDER BY seq
                        LIMIT $4) AS r),
-- Keys of which a message may not be leased with a range now. Where the own table is empty it is not probed.
held AS MATERIALIZED (
  SELECT DISTINCT e.key
    FROM examined AS e
   WHERE e.is_wanted AND e.key IS NOT NULL
     AND (NOT e.is_served
          OR e.key IN (SELECT key FROM leased)
          OR (SELECT EXISTS (SELECT FROM "log_group" WHERE state = 0) OR EXISTS (SELECT FROM "log_group" WHERE state = 1)
                     OR EXISTS (SELECT FROM "log_group" WHERE state = 2))
             AND (EXISTS (SELECT FROM "log_group" AS o WHERE o.state = 0 AND o.seq > 0 AND o.key = e.key OFFSET 0)
                  OR EXISTS (SELECT FROM "log_group" AS o WHERE o.state IN (1, 2) AND o.key = e.key OFFSET 0)))),
running AS MATERIALIZED (
  SELECT seq, key, is_wanted, is_own, count(*) FILTER (WHERE is_wanted) OVER upwards AS place,
         count(*) FILTER (WHERE is_own) OVER upwards AS n_own, coalesce(sum(bytes) FILTER (WHERE is_own) OVER upwards, 0) AS bytes
    FROM (SELECT seq, key, bytes, is_wanted,
                 is_wanted AND is_served AND NOT coalesce(key IN (SELECT key FROM held), false) AS is_own
            FROM examined) AS classed
  WINDOW upwards AS (ORDER BY seq ROWS UNBOUNDED PRECEDING)),
cut AS MATERIALIZED (
  SELECT count(*) AS n, max(seq) AS upto, count(*) FILTER (WHERE is_wanted) AS n_in, count(*) FILTER (WHERE is_own) AS n_own
    FROM running WHERE n_own <= $8 AND place <= 1000 AND (bytes <= $6 OR n_own <= 1)),
moved AS (
  UPDATE "log_groups" AS g SET position = e.upto
    FROM cut AS e
   WHERE g.name = $1 AND e.n > 0),
ranged AS (
  INSERT INTO "log_ranges" (token, group_name, from_seq, to_seq, topics, n, done, leased_until)
  SELECT $2::uuid, $1, c.position, e.upto, c.topics, e.n_in,
         CASE WHEN e.n_own < e.n_in THEN
           (SELECT string_agg(CASE WHEN is_own THEN '0' ELSE '1' END, '' ORDER BY seq) FROM running WHERE is_wanted AND seq <= e.upto)::bit varying END,
         clock_timestamp() + $3::bigint * interval '1 microsecond'
    FROM known AS c CROSS JOIN cut AS e
   WHERE e.n_own > 0),
aside AS MATERIALIZED (SELECT DISTINCT key FROM running WHERE is_wanted AND NOT is_own AND key IS NOT NULL AND seq <= (SELECT upto FROM cut)),
crossed AS MATERIALIZED (
  SELECT token, n, done, leased_until FROM "log_ranges"
   WHERE token = ANY (ARRAY(SELECT DISTINCT token FROM leased WHERE (key IN (SELECT key FROM aside)) IS TRUE))
   ORDER BY token
     FOR UPDATE),
pulled AS MATERIALIZED (
  SELECT l.token, l.seq, l.place, c.leased_until
    FROM leased AS l JOIN crossed AS c ON c.token = l.token
   WHERE (l.key IN (SELECT key FROM aside)) IS TRUE AND (c.done IS NULL OR get_bit(c.done, l.place::integer) = 0)),
shrunk AS MATERIALIZED (
  SELECT c.token, coalesce(c.done, repeat('0', c.n)::bit varying)
                  | (SELECT string_agg(CASE WHEN (c.token, p::bigint) IN (SELECT token, place FROM pulled) THEN '1' ELSE '0' END, '' ORDER BY p)
                       FROM generate_series(0, c.n - 1) AS p)::bit varying AS done
    FROM crossed AS c),
ended AS (
  DELETE FROM "log_ranges" AS r USING shrunk AS s WHERE r.token = s.token AND strpos(s.done::text, '0') = 0),
changed AS (
  UPDATE "log_ranges" AS r SET done = s.done FROM shrunk AS s WHERE r.token = s.token AND strpos(s.done::text, '0') > 0),
put_aside AS (
  INSERT INTO "log_group" (seq, id, topic, key, payload, headers, created_at, state, available_at, lease, leased_until, attempts, fence)
  SELECT l.seq, l.id, l.topic, l.key, l.payload, l.headers, l.created_at, l.state, coalesce(l.available_at, least(l.created_at, clock_timestamp())),
         l.token, l.leased_until, CASE WHEN l.token IS NULL THEN 0 ELSE 1 END, CASE WHEN l.token IS NULL THEN 0 ELSE 1 END
    FROM (SELECT m.*, NULL::uuid AS token, NULL::timestamptz AS leased_until
            FROM known AS c CROSS JOIN cut AS e
           CROSS JOIN LATERAL (
                 SELECT * FROM "log"
                  WHERE seq > c.position AND seq <= e.upto AND (c.topics IS NULL OR topic = ANY (c.topics))
                    AND (state <> 0 OR NOT ($5::text[] IS NULL OR topic = ANY ($5::text[])) OR key IN (SELECT key FROM held))) AS m
          UNION ALL
          SELECT m.*, p.token, p.leased_until FROM pulled AS p CROSS JOIN LATERAL (SELECT * FROM "log" WHERE seq = p.seq) AS m) AS l
   ORDER BY l.seq
  ON CONFLICT DO NOTHING)
SELECT m.seq, m.id, m.topic, m.key, m.payload, m.headers::text,
       CASE WHEN m.created_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN m.created_at END,
       1, 1::bigint, 0::smallint, EXISTS (SELECT FROM known), e.n = (SELECT count(*) FROM running) AND e.n < $4, m.place, e.n
  FROM cursor
 CROSS JOIN cut AS e
  LEFT JOIN LATERAL (
       SELECT * FROM (SELECT l.*, row_number() OVER (ORDER BY l.seq) - 1 AS place
                        FROM known AS c
                       CROSS JOIN LATERAL (
                             SELECT * FROM "log"
                              WHERE seq > c.position AND seq <= e.upto AND (c.topics IS NULL OR topic = ANY (c.topics))) AS l) AS placed
        WHERE state = 0 AND ($5::text[] IS NULL OR topic = ANY ($5::text[])) AND NOT coalesce(key IN (SELECT key FROM held), false)
        ORDER BY seq) AS m ON true
