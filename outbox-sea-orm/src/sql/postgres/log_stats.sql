-- $1 group, $2 how many rows behind the group's position to look at. Answers as stats, of what is not in the group's own table:
-- what it has not read yet, and what is leased with ranges.
-- What a slot has delivered can be both. A transaction that stays open holds the position of a group that is fed: what is visible in
-- fed_snapshot was delivered past it and is left out, one by one, 0.3 s a million. Where the slot is gone, it comes again and counts.
-- age() compares across a wrap-around. A snapshot knows no subtransactions: what was written under a savepoint of a transaction that was
-- open then is left out as soon as it is committed.
-- Beyond the bound the counts are projected from the numbers handed out.
WITH cursor AS MATERIALIZED (
  SELECT position, topics, fed_upto, ARRAY(SELECT pg_snapshot_xip(fed_snapshot)::xid) AS open,
         CASE WHEN fed_snapshot IS NOT NULL AND EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = slot)
              THEN age(pg_snapshot_xmax(fed_snapshot)::xid) END AS fed_age
    FROM "log_groups" WHERE name = $1),
ahead AS MATERIALIZED (
  SELECT l.* FROM cursor AS c
   CROSS JOIN LATERAL (
     SELECT seq, topic, state, created_at, available_at FROM "log"
      WHERE seq > c.position AND (c.fed_age IS NULL OR age(xmin) <= c.fed_age OR xmin = ANY (c.open) OR seq > c.fed_upto)
      ORDER BY seq LIMIT $2) AS l),
scale AS (
  SELECT CASE WHEN n < $2 THEN 1
              ELSE greatest(1, (coalesce(pg_sequence_last_value(pg_get_serial_sequence('"log"', 'seq')::regclass), 0) - first)
                               / greatest(1, last - first)::numeric) END AS factor
    FROM (SELECT count(*) AS n, max(seq) AS last, CASE WHEN c.fed_age IS NULL THEN c.position ELSE min(seq) - 1 END AS first
            FROM ahead CROSS JOIN cursor AS c
           GROUP BY c.position, c.fed_age) AS a),
ranged AS MATERIALIZED (
  SELECT m.seq, m.topic, r.leased_until, r.done, row_number() OVER (PARTITION BY r.token ORDER BY m.seq) - 1 AS place
    FROM "log_ranges" AS r
   CROSS JOIN LATERAL generate_series(1, coalesce(cardinality(r.runs), 2), 2) AS i
   CROSS JOIN LATERAL (SELECT seq, topic FROM "log"
                        WHERE seq > coalesce(r.runs[i], r.from_seq) AND seq <= coalesce(r.runs[i + 1], r.to_seq)
                          AND (r.topics IS NULL OR topic = ANY (r.topics))) AS m
   WHERE r.group_name = $1)
SELECT state, topic, round(sum(factor))::bigint, coalesce(round(sum(factor) FILTER (WHERE is_due)), 0)::bigint,
       count(*) FILTER (WHERE state = 0 AND NOT is_due), 0::bigint,
       (extract(epoch FROM clock_timestamp() - min(least(greatest(due_at, '1970-01-01Z'), '9999-12-31Z')) FILTER (WHERE is_due)) * 1000000)::bigint,
       max(attempts)
  FROM (SELECT a.state, a.topic, 0 AS attempts, CASE a.state WHEN 0 THEN a.created_at ELSE a.available_at END AS due_at,
               a.state = 0 OR a.available_at <= clock_timestamp() AS is_due, s.factor
          FROM ahead AS a CROSS JOIN scale AS s CROSS JOIN cursor AS c
         WHERE (c.topics IS NULL OR a.topic = ANY (c.topics)) AND a.seq NOT IN (SELECT seq FROM ranged)
        UNION ALL
        SELECT 0::smallint, topic, 1, leased_until, leased_until <= clock_timestamp(), 1
          FROM ranged WHERE done IS NULL OR get_bit(done, place::integer) = 0) AS m
 GROUP BY state, topic
