-- $1 limit, $2 token, $3 lease in microseconds, $4 max_attempts, $5 topics or NULL, $6 max_bytes, $7 floor, $8 whether a
-- dead letter blocks its key, $9 the number up to which to read, or two batches above the lowest if that is more.
-- Claims in the order of the numbers, for a full batch; what it leaves out, claim_ordered finds. At or below the floor
-- nothing is ready or claimed but what was parked or dead before, which outbox_held has: docs/decisions/010 has the proof.
-- RETURNING has no order: the caller sorts by seq. The last columns are the lowest number that is
-- ready or claimed, and whether a message with a key is parked or dead, or was.
WITH
lowest AS MATERIALIZED (SELECT seq FROM "outbox" WHERE state = 0 AND seq > $7 ORDER BY seq LIMIT 1),
-- Whether outbox_held has anything. It is not probed otherwise.
held AS MATERIALIZED (
  SELECT EXISTS (SELECT FROM "outbox" WHERE key IS NOT NULL AND (state IN (1, 2) OR state = 0 AND available_at IS NOT NULL)) AS has_rows),
-- Every row above the floor that is ready or claimed, up to a number; whether this claim may have it.
near AS MATERIALIZED (
  SELECT ctid AS tid, seq, key,
         lease IS NULL AND NOT ($8 AND attempts >= $4) AND ($5::text[] IS NULL OR topic = ANY ($5::text[])) AS is_free
    FROM "outbox"
   WHERE state = 0 AND seq > $7
     AND seq <= greatest($9, 2 * $1 + (SELECT seq FROM lowest))
   ORDER BY seq
   LIMIT 16 * $1),
-- Keys of which it may not have every one of those are left out. A row that somebody has changed since the snapshot is locked in its
-- new version, at another place, and does not count.
picked AS MATERIALIZED (
  SELECT l.tid, n.seq, n.key, l.bytes
    FROM near AS n
   CROSS JOIN LATERAL (
         SELECT ctid AS tid, octet_length(payload) AS bytes
           FROM "outbox"
          WHERE ctid = n.tid AND state = 0 AND lease IS NULL
            FOR UPDATE SKIP LOCKED) AS l
   WHERE n.is_free AND l.tid = n.tid
     AND (n.key IS NULL OR NOT (n.key IN (SELECT key FROM near WHERE NOT is_free AND key IS NOT NULL)))
     AND NOT ((SELECT has_rows FROM held)
              AND EXISTS (SELECT FROM "outbox" AS h
                           WHERE h.key = n.key AND h.seq < n.seq AND (h.state IN (1, 2) OR h.state = 0 AND h.available_at IS NOT NULL)
                             AND h.state = ANY (CASE WHEN $8 THEN '{0,1,2}' ELSE '{0,1}' END::smallint[])))
   LIMIT $1),
-- The first row of a key that was passed over: nothing behind it may be taken. IS TRUE keeps the keys a hash, not a join.
missed AS MATERIALIZED (
  SELECT key, min(seq) AS seq
    FROM near
   WHERE is_free AND seq < (SELECT max(seq) FROM picked)
     AND NOT (seq IN (SELECT seq FROM picked)) AND (key IN (SELECT key FROM picked WHERE key IS NOT NULL)) IS TRUE
   GROUP BY key),
cut AS (
  SELECT tid, row_number() OVER running AS place, sum(bytes) OVER running AS bytes
    FROM picked AS p
   WHERE NOT EXISTS (SELECT FROM missed AS x WHERE x.key = p.key AND x.seq < p.seq)
  WINDOW running AS (ORDER BY seq ROWS UNBOUNDED PRECEDING))
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
          m.attempts, m.fence, m.state, (SELECT seq FROM lowest), (SELECT has_rows FROM held)
