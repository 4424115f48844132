-- $1 group, $2 token, $3 lease in microseconds, $4 how many rows to examine, $5 topics that are served or NULL, $6 max_bytes,
-- $7 horizon, $8 limit. Leases the next rows of the log up to the horizon, and moves the group's position beyond them. Whoever
-- waited for the position sees the newest one, and the rows behind it whatever its snapshot: nothing at or below the
-- horizon can still appear.
-- Where a row must go elsewhere, because it is delayed or its topic is not served, or where they are too many, this
-- changes nothing and says so: log_claim_mixed is for that. Rows are read twice, by number to find the end and then to be
-- sent; keeping them in between costs more. Index: log_seq.
WITH cursor AS MATERIALIZED (
  SELECT position, topics FROM "log_groups" WHERE name = $1 FOR UPDATE),
examined AS MATERIALIZED (
  SELECT c.position, c.topics, e.n, e.upto, e.n_own, e.n_own + e.n_foreign = e.n AND e.n_own <= $8 AND e.bytes <= $6 AS is_plain
    FROM cursor AS c
   CROSS JOIN LATERAL (
         SELECT count(*) AS n, max(r.seq) AS upto, coalesce(sum(r.bytes), 0) AS bytes,
                count(*) FILTER (WHERE r.state = 0 AND ($5::text[] IS NULL OR r.topic = ANY ($5::text[]))
                                   AND (c.topics IS NULL OR r.topic = ANY (c.topics))) AS n_own,
                count(*) FILTER (WHERE NOT (c.topics IS NULL OR r.topic = ANY (c.topics))) AS n_foreign
           FROM (SELECT seq, topic, state, octet_length(payload) AS bytes
                   FROM "log"
                  WHERE seq > c.position AND seq <= $7
                  ORDER BY seq
                  LIMIT $4) AS r) AS e),
moved AS (
  UPDATE "log_groups" AS g SET position = e.upto
    FROM examined AS e
   WHERE g.name = $1 AND e.is_plain AND e.n > 0),
leased AS (
  INSERT INTO "log_ranges" (token, group_name, from_seq, to_seq, topics, n, leased_until)
  SELECT $2::uuid, $1, e.position, e.upto,
         CASE WHEN $5::text[] IS NULL THEN e.topics WHEN e.topics IS NULL THEN $5::text[]
              ELSE ARRAY(SELECT unnest(e.topics) INTERSECT SELECT unnest($5::text[])) END,
         e.n_own, clock_timestamp() + $3::bigint * interval '1 microsecond'
    FROM examined AS e
   WHERE e.is_plain AND e.n_own > 0)
SELECT m.seq, m.id, m.topic, m.key, m.payload, m.headers::text,
       CASE WHEN m.created_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN m.created_at END,
       1, 1::bigint, 0::smallint, e.is_plain, e.n < $4
  FROM examined AS e
  LEFT JOIN LATERAL (
       SELECT * FROM "log" AS l
        WHERE l.seq > e.position AND l.seq <= e.upto AND e.is_plain AND l.state = 0
          AND ($5::text[] IS NULL OR l.topic = ANY ($5::text[]))
          AND (e.topics IS NULL OR l.topic = ANY (e.topics))
        ORDER BY l.seq) AS m ON true
