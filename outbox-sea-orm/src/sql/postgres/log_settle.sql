-- As log_done, with messages that did not simply succeed: $3 tokens, $4 numbers, $5 places, $6 outcomes (1 retry, 2 dead, 3 release,
-- 4 still leased, apart from its range), $7 delays in microseconds, $8 errors. They become messages of the group's own table.
WITH held AS MATERIALIZED (
  SELECT r.token, r.from_seq, r.to_seq, r.n, r.done,
         coalesce(r.done, repeat('0', r.n)::bit varying) | rpad(i.places, r.n, '0')::bit varying AS now_done
    FROM "log_ranges" AS r
    JOIN unnest($1::uuid[], $2::text[]) AS i (token, places) ON i.token = r.token
   ORDER BY r.token
     FOR UPDATE OF r),
kept AS (
  INSERT INTO "log_group" (id, topic, key, payload, headers, created_at, state, available_at, lease, leased_until, attempts, fence,
                           last_error, history, dead_at)
  SELECT l.id, l.topic, l.key, l.payload, l.headers, l.created_at,
         CASE k.outcome WHEN 1 THEN 1 WHEN 2 THEN 2 ELSE 0 END,
         CASE k.outcome WHEN 1 THEN clock_timestamp() + k.delay * interval '1 microsecond' ELSE l.available_at END,
         CASE k.outcome WHEN 4 THEN h.token END,
         CASE k.outcome WHEN 4 THEN clock_timestamp() + k.delay * interval '1 microsecond' END,
         CASE k.outcome WHEN 3 THEN 0 ELSE 1 END, 1,
         CASE WHEN k.outcome IN (1, 2) THEN k.error END,
         CASE WHEN k.outcome IN (1, 2) THEN
           jsonb_build_array(jsonb_build_object('attempt', 1, 'at', clock_timestamp(), 'error', left(k.error, 200))) END,
         CASE k.outcome WHEN 2 THEN clock_timestamp() END
    FROM unnest($3::uuid[], $4::bigint[], $5::integer[], $6::smallint[], $7::bigint[], $8::text[])
         WITH ORDINALITY AS k (token, seq, place, outcome, delay, error, position)
    JOIN held AS h ON h.token = k.token
    JOIN "log" AS l ON l.seq = k.seq AND l.seq > h.from_seq AND l.seq <= h.to_seq
   WHERE k.place < h.n AND (h.done IS NULL OR get_bit(h.done, k.place) = 0)
   ORDER BY k.position
  ON CONFLICT DO NOTHING),
ended AS (
  DELETE FROM "log_ranges" AS r USING held AS h WHERE r.token = h.token AND strpos(h.now_done::text, '0') = 0),
changed AS (
  UPDATE "log_ranges" AS r SET done = h.now_done FROM held AS h WHERE r.token = h.token AND strpos(h.now_done::text, '0') > 0)
SELECT token, n, done::text FROM held
