-- $1 token of a range that log_claim has leased, $2 and $3 its ends: behind the one up to the other, $4 its topics, NULL for
-- all. What the range holds, each row at its place; nothing when it was given up meanwhile. To lock the range is to write, so
-- this commit waits for the disk up to here, and with that for the claim's. Index: log_seq.
WITH held AS MATERIALIZED (SELECT FROM "log_ranges" WHERE token = $1 FOR UPDATE)
SELECT seq, id, topic, key, payload, headers, created_at, state
  FROM "log"
 WHERE seq > $2 AND seq <= $3 AND ($4::text[] IS NULL OR topic = ANY ($4::text[])) AND (SELECT EXISTS (SELECT FROM held))
 ORDER BY seq
