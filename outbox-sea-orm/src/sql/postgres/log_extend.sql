-- $1 tokens of ranges, $2 places as in log_done, $3 lease in microseconds. Extends the ranges of which everything that is not
-- settled is named. Answers as log_done, and whether it did.
WITH held AS MATERIALIZED (
  SELECT r.token, r.n, r.done,
         strpos((coalesce(r.done, repeat('0', r.n)::bit varying) | rpad(i.places, r.n, '0')::bit varying)::text, '0') = 0 AS is_whole
    FROM "log_ranges" AS r
    JOIN unnest($1::uuid[], $2::text[]) AS i (token, places) ON i.token = r.token
   ORDER BY r.token
     FOR UPDATE OF r),
extended AS (
  UPDATE "log_ranges" AS r SET leased_until = clock_timestamp() + $3::bigint * interval '1 microsecond'
    FROM held AS h
   WHERE r.token = h.token AND h.is_whole)
SELECT token, n, done::text, is_whole FROM held
