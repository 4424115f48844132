-- As log_done, with messages that did not simply succeed: $3 tokens, $4 numbers, $5 places, $6 outcomes (1 retry, 2 dead, 3 release,
-- 4 still leased, apart from its range, 6 as it was enqueued), $7 delays in microseconds, $8 errors. They become messages of the
-- group's own table. $9 whether the log is ordered: then under their numbers in the log, and whatever else of their keys is
-- leased with their range goes with them, under its lease (5).
WITH held AS MATERIALIZED (
  SELECT r.token, r.from_seq, r.to_seq, r.topics, r.n, r.done, r.leased_until,
         coalesce(r.done, repeat('0', r.n)::bit varying) | rpad(i.places, r.n, '0')::bit varying AS now_done
    FROM "log_ranges" AS r
    JOIN unnest($1::uuid[], $2::text[]) AS i (token, places) ON i.token = r.token
   ORDER BY r.token
     FOR UPDATE OF r),
failed AS MATERIALIZED (
  SELECT h.token, l.seq, l.key, k.outcome, k.delay, k.error, k.position
    FROM unnest($3::uuid[], $4::bigint[], $5::integer[], $6::smallint[], $7::bigint[], $8::text[])
         WITH ORDINALITY AS k (token, seq, place, outcome, delay, error, position)
    JOIN held AS h ON h.token = k.token
    JOIN "log" AS l ON l.seq = k.seq AND l.seq > h.from_seq AND l.seq <= h.to_seq
   WHERE k.place < h.n AND (h.done IS NULL OR get_bit(h.done, k.place) = 0)),
pulled AS MATERIALIZED (
  SELECT p.token, p.seq, p.place
    FROM (SELECT h.token, h.now_done, m.seq, m.key, row_number() OVER (PARTITION BY h.token ORDER BY m.seq) - 1 AS place
            FROM held AS h
           CROSS JOIN LATERAL (SELECT seq, key FROM "log"
                                WHERE seq > h.from_seq AND seq <= h.to_seq
                                  AND (h.topics IS NULL OR topic = ANY (h.topics))) AS m
           WHERE $9) AS p
   WHERE get_bit(p.now_done, p.place::integer) = 0 AND ((p.token, p.key) IN (SELECT token, key FROM failed)) IS TRUE),
kept AS (
  INSERT INTO "log_group" (seq, id, topic, key, payload, headers, created_at, state, available_at, lease, leased_until, attempts, fence,
                           last_error, history, dead_at)
  SELECT CASE WHEN $9 THEN l.seq ELSE nextval((SELECT pg_get_serial_sequence('"log_group"', 'seq'))::regclass) END,
         l.id, l.topic, l.key, l.payload, l.headers, l.created_at,
         CASE k.outcome WHEN 1 THEN 1 WHEN 2 THEN 2 WHEN 6 THEN l.state ELSE 0 END,
         CASE WHEN k.outcome = 1 THEN clock_timestamp() + k.delay * interval '1 microsecond'
              WHEN $9 THEN coalesce(l.available_at, least(l.created_at, clock_timestamp())) ELSE l.available_at END,
         CASE WHEN k.outcome IN (4, 5) THEN h.token END,
         CASE k.outcome WHEN 4 THEN clock_timestamp() + k.delay * interval '1 microsecond' WHEN 5 THEN h.leased_until END,
         CASE WHEN k.outcome IN (3, 6) THEN 0 ELSE 1 END, CASE k.outcome WHEN 6 THEN 0 ELSE 1 END,
         CASE WHEN k.outcome IN (1, 2) THEN k.error END,
         CASE WHEN k.outcome IN (1, 2) THEN
           jsonb_build_array(jsonb_build_object('attempt', 1, 'at', clock_timestamp(), 'error', left(k.error, 200))) END,
         CASE k.outcome WHEN 2 THEN clock_timestamp() END
    FROM (SELECT token, seq, outcome, delay, error, position FROM failed
          UNION ALL
          SELECT token, seq, 5::smallint, 0, '', 0 FROM pulled) AS k
    JOIN held AS h ON h.token = k.token
    JOIN "log" AS l ON l.seq = k.seq
   ORDER BY k.position
  ON CONFLICT DO NOTHING),
settled AS MATERIALIZED (
  SELECT h.token, CASE WHEN EXISTS (SELECT FROM pulled) THEN
                    h.now_done | (SELECT string_agg(CASE WHEN (h.token, p::bigint) IN (SELECT token, place FROM pulled) THEN '1' ELSE '0' END, '' ORDER BY p)
                                    FROM generate_series(0, h.n - 1) AS p)::bit varying
                  ELSE h.now_done END AS done
    FROM held AS h),
ended AS (
  DELETE FROM "log_ranges" AS r USING settled AS s WHERE r.token = s.token AND strpos(s.done::text, '0') = 0),
changed AS (
  UPDATE "log_ranges" AS r SET done = s.done FROM settled AS s WHERE r.token = s.token AND strpos(s.done::text, '0') > 0)
SELECT token, n, done::text FROM held
