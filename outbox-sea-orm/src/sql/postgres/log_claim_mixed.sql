-- As log_claim, for rows that are not all alike: what is delayed, and what the group wants but this claim does not serve,
-- goes to the group's own table, and the claim ends before the limit or max_bytes, but never before its first message.
-- $1 to $4 as there, $5 topics that are served or NULL, $6 max_bytes, $7 horizon, $8 limit, $9 names of sessions.
WITH cursor AS MATERIALIZED (
  SELECT position, topics, least($7, fed_above) AS horizon FROM "log_groups" WHERE name = $1 AND "this_session" = ANY ($9::text[]) FOR UPDATE),
running AS MATERIALIZED (
  SELECT seq, is_wanted, is_own, count(*) FILTER (WHERE is_wanted) OVER upwards AS place,
         count(*) FILTER (WHERE is_own) OVER upwards AS n_own, coalesce(sum(bytes) FILTER (WHERE is_own) OVER upwards, 0) AS bytes
    FROM (SELECT r.seq, r.bytes, r.is_wanted, r.is_wanted AND r.state = 0 AND ($5::text[] IS NULL OR r.topic = ANY ($5::text[])) AS is_own
            FROM cursor AS c
           CROSS JOIN LATERAL (SELECT seq, topic, state, octet_length(payload) AS bytes, c.topics IS NULL OR topic = ANY (c.topics) AS is_wanted
                                 FROM "log"
                                WHERE seq > c.position AND seq <= c.horizon
                                ORDER BY seq
                                LIMIT $4) AS r) AS classed
  WINDOW upwards AS (ORDER BY seq ROWS UNBOUNDED PRECEDING)),
cut AS MATERIALIZED (
  SELECT c.position, c.topics, e.n, e.upto, e.n_in, e.n_own
    FROM cursor AS c
   CROSS JOIN (SELECT count(*) AS n, max(seq) AS upto, count(*) FILTER (WHERE is_wanted) AS n_in, count(*) FILTER (WHERE is_own) AS n_own
                 FROM running WHERE n_own <= $8 AND place <= 1000 AND (bytes <= $6 OR n_own <= 1)) AS e),
moved AS (
  UPDATE "log_groups" AS g SET position = e.upto
    FROM cut AS e
   WHERE g.name = $1 AND e.n > 0),
leased AS (
  INSERT INTO "log_ranges" (token, group_name, from_seq, to_seq, topics, n, done, leased_until)
  SELECT $2::uuid, $1, e.position, e.upto, e.topics, e.n_in,
         CASE WHEN e.n_own < e.n_in THEN
           (SELECT string_agg(CASE WHEN is_own THEN '0' ELSE '1' END, '' ORDER BY seq) FROM running WHERE is_wanted AND seq <= e.upto)::bit varying END,
         clock_timestamp() + $3::bigint * interval '1 microsecond'
    FROM cut AS e
   WHERE e.n_own > 0),
put_aside AS (
  INSERT INTO "log_group" (id, topic, key, payload, headers, created_at, state, available_at)
  SELECT l.id, l.topic, l.key, l.payload, l.headers, l.created_at, l.state, l.available_at
    FROM cut AS e
   CROSS JOIN LATERAL (
         SELECT * FROM "log"
          WHERE seq > e.position AND seq <= e.upto AND (e.topics IS NULL OR topic = ANY (e.topics))
            AND (state <> 0 OR NOT ($5::text[] IS NULL OR topic = ANY ($5::text[])))) AS l
   ORDER BY l.seq
  ON CONFLICT DO NOTHING)
SELECT m.seq, m.id, m.topic, m.key, m.payload, m.headers::text,
       CASE WHEN m.created_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN m.created_at END,
       1, 1::bigint, 0::smallint, true, e.n = (SELECT count(*) FROM running) AND e.n < $4, m.place
  FROM cut AS e
  LEFT JOIN LATERAL (
       SELECT * FROM (SELECT l.*, row_number() OVER (ORDER BY l.seq) - 1 AS place
                        FROM "log" AS l
                       WHERE l.seq > e.position AND l.seq <= e.upto AND (e.topics IS NULL OR l.topic = ANY (e.topics))) AS placed
        WHERE state = 0 AND ($5::text[] IS NULL OR topic = ANY ($5::text[]))
        ORDER BY seq) AS m ON true
