-- $1 limit, $2 token, $3 lease in microseconds, $4 max_attempts, $5 topics or NULL, $6 max_bytes, $7 mark, $8 the lane
-- where the last claim ended. Claims ready rows above the mark, as heap-only updates, each lane the same share of the
-- limit; what lanes leave of it is shared by those that have more, and what is still left then goes by arrival. A walk from
-- lane to lane, beginning behind $8 and around, finds the lanes. docs/decisions/012. RETURNING has no order: the caller
-- sorts by seq.
WITH RECURSIVE
-- One probe of outbox_lanes for each: its first row that is not claimed. Read only as far as lanes needs it.
above AS (
  (SELECT lane, topic, seq FROM "outbox" WHERE state = 0 AND seq > 0 AND lane > $8 AND seq > $7 AND lease IS NULL ORDER BY lane, seq LIMIT 1)
  UNION ALL
  SELECT n.* FROM above AS a
   CROSS JOIN LATERAL (SELECT lane, topic, seq FROM "outbox" WHERE state = 0 AND seq > 0 AND lane > a.lane AND seq > $7 AND lease IS NULL
                        ORDER BY lane, seq LIMIT 1) AS n),
below AS (
  (SELECT lane, topic, seq FROM "outbox" WHERE state = 0 AND seq > 0 AND lane <= $8 AND seq > $7 AND lease IS NULL ORDER BY lane, seq LIMIT 1)
  UNION ALL
  SELECT n.* FROM below AS b
   CROSS JOIN LATERAL (SELECT lane, topic, seq FROM "outbox" WHERE state = 0 AND seq > 0 AND lane > b.lane AND lane <= $8 AND seq > $7 AND lease IS NULL
                        ORDER BY lane, seq LIMIT 1) AS n),
-- All rows of a lane are of one topic.
lanes AS MATERIALIZED (
  SELECT lane, seq FROM (SELECT * FROM above UNION ALL SELECT * FROM below) AS l
   WHERE $5::text[] IS NULL OR topic = ANY ($5::text[])
   LIMIT $1),
turns AS MATERIALIZED (SELECT lane, seq, row_number() OVER () AS turn FROM lanes),
share AS MATERIALIZED (SELECT $1 / greatest(count(*), 1) AS n FROM turns),
first AS MATERIALIZED (
  SELECT t.lane, t.turn, r.tid, r.seq, r.bytes
    FROM turns AS t
   CROSS JOIN LATERAL (SELECT ctid AS tid, seq, octet_length(payload) AS bytes FROM "outbox"
                        WHERE state = 0 AND seq > 0 AND lane = t.lane AND seq >= t.seq AND lease IS NULL
                        ORDER BY lane, seq
                        LIMIT (SELECT n FROM share)
                          FOR UPDATE SKIP LOCKED) AS r),
more AS MATERIALIZED (
  SELECT lane, turn, max(seq) AS seq FROM first GROUP BY lane, turn HAVING count(*) = (SELECT n FROM share) ORDER BY turn),
second AS MATERIALIZED (
  SELECT m.lane, m.turn, r.tid, r.seq, r.bytes
    FROM more AS m
   CROSS JOIN LATERAL (SELECT ctid AS tid, seq, octet_length(payload) AS bytes FROM "outbox"
                        WHERE state = 0 AND seq > 0 AND lane = m.lane AND seq > m.seq AND lease IS NULL
                        ORDER BY lane, seq
                        LIMIT (SELECT ($1 - (SELECT count(*) FROM first)) / greatest(count(*), 1) + 1 FROM more)
                          FOR UPDATE SKIP LOCKED) AS r
   LIMIT $1 - (SELECT count(*) FROM first)),
-- Without the rows above: SKIP LOCKED does not skip what this statement itself has locked.
rest AS MATERIALIZED (
  SELECT ctid AS tid, seq, octet_length(payload) AS bytes FROM "outbox"
   WHERE state = 0 AND lease IS NULL AND seq > $7 AND ($5::text[] IS NULL OR topic = ANY ($5::text[]))
     AND seq NOT IN (SELECT seq FROM first UNION ALL SELECT seq FROM second)
   ORDER BY seq
   LIMIT $1 - (SELECT count(*) FROM first) - (SELECT count(*) FROM second)
     FOR UPDATE SKIP LOCKED),
cut AS (
  SELECT tid, row_number() OVER running AS place, sum(bytes) OVER running AS bytes
    FROM (SELECT tid, turn, bytes, row_number() OVER (PARTITION BY turn ORDER BY seq) AS place
            FROM (SELECT * FROM first UNION ALL SELECT * FROM second) AS f
           UNION ALL
          SELECT tid, seq, bytes, $1 + 1 FROM rest) AS c
  WINDOW running AS (ORDER BY c.place, c.turn ROWS UNBOUNDED PRECEDING))
UPDATE "outbox" AS m
   SET attempts = CASE WHEN m.attempts < $4 THEN m.attempts + 1 ELSE m.attempts END,
       fence = m.fence + 1,
       lease = CASE WHEN m.attempts < $4 THEN $2::uuid END,
       leased_until = CASE WHEN m.attempts < $4 THEN clock_timestamp() + $3::bigint * interval '1 microsecond' END,
       state = CASE WHEN m.attempts < $4 THEN 0 ELSE 2 END,
       dead_at = CASE WHEN m.attempts < $4 THEN NULL ELSE clock_timestamp() END,
       last_error = CASE WHEN m.attempts < $4 THEN m.last_error ELSE 'attempt limit ' || $4::integer || ' reached' END
 WHERE m.state = 0 AND m.ctid = ANY (ARRAY(SELECT tid FROM cut WHERE cut.bytes <= $6 OR cut.place = 1))
RETURNING m.seq, m.id, m.topic, m.key, m.payload, m.headers::text,
          CASE WHEN m.created_at BETWEEN '1970-01-01Z' AND '9999-12-31Z' THEN m.created_at END,
          m.attempts, m.fence, m.state
