-- $1 tokens of ranges, $2 which places are done: a text of digits, 1 where it is. A range of which everything is done is gone.
-- One row a range that is there: its token, how many places it has, and which were done before, NULL for none.
WITH held AS MATERIALIZED (
  SELECT r.token, r.n, r.done, coalesce(r.done, repeat('0', r.n)::bit varying) | rpad(i.places, r.n, '0')::bit varying AS now_done
    FROM "log_ranges" AS r
    JOIN unnest($1::uuid[], $2::text[]) AS i (token, places) ON i.token = r.token
   ORDER BY r.token
     FOR UPDATE OF r),
ended AS (
  DELETE FROM "log_ranges" AS r USING held AS h WHERE r.token = h.token AND strpos(h.now_done::text, '0') = 0),
changed AS (
  UPDATE "log_ranges" AS r SET done = h.now_done FROM held AS h WHERE r.token = h.token AND strpos(h.now_done::text, '0') > 0)
SELECT token, n, done::text FROM held
