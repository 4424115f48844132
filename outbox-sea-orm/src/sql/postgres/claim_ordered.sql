-- $1 limit, $2 token, $3 lease in microseconds, $4 max_attempts, $5 topics or NULL, $6 max_bytes, $7 the key where the
-- last claim ended, $8 whether a dead letter blocks its key, $9 how many of the messages may be without a key.
-- Walks from key to key, beginning behind $7 and around, and takes the first message of each key that is claimable;
-- where these are fewer than the limit, it takes a run of each key. docs/decisions/010 says why nothing can slip
-- between the parts. RETURNING has no order: the caller sorts by seq.
WITH RECURSIVE
-- One probe of outbox_keys a key: the first row that is ready or claimed. Read only as far as heads needs it.
above AS (
  (SELECT ctid AS tid, key, seq FROM "outbox" WHERE state = 0 AND seq > 0 AND key > $7 ORDER BY key, seq LIMIT 1)
  UNION ALL
  SELECT n.* FROM above AS a
   CROSS JOIN LATERAL (SELECT ctid, key, seq FROM "outbox" WHERE state = 0 AND seq > 0 AND key > a.key ORDER BY key, seq LIMIT 1) AS n),
below AS (
  (SELECT ctid AS tid, key, seq FROM "outbox" WHERE state = 0 AND seq > 0 AND key <= $7 ORDER BY key, seq LIMIT 1)
  UNION ALL
  SELECT n.* FROM below AS b
   CROSS JOIN LATERAL (SELECT ctid, key, seq FROM "outbox" WHERE state = 0 AND seq > 0 AND key > b.key AND key <= $7 ORDER BY key, seq LIMIT 1) AS n),
-- Messages without a key have no order. Sorted by both columns, since the planner sees no order behind IS NULL.
keyless AS MATERIALIZED (
  SELECT ctid AS tid, seq, octet_length(payload) AS bytes
    FROM "outbox"
   WHERE state = 0 AND seq > 0 AND key IS NULL AND lease IS NULL AND ($5::text[] IS NULL OR topic = ANY ($5::text[]))
   ORDER BY key, seq
   LIMIT $9
     FOR UPDATE SKIP LOCKED),
-- The LIMIT keeps the outer condition outside: a row that somebody has changed since the snapshot is locked in its
-- new version, at another place, and does not count.
heads AS MATERIALIZED (
  SELECT h.tid, k.key, k.seq, h.attempts, h.bytes
    FROM (SELECT * FROM above UNION ALL SELECT * FROM below) AS k
   CROSS JOIN LATERAL (
         SELECT ctid AS tid, attempts, octet_length(payload) AS bytes
           FROM "outbox"
          WHERE state = 0 AND seq > 0 AND key = k.key AND seq = k.seq AND lease IS NULL
            AND ($5::text[] IS NULL OR topic = ANY ($5::text[]))
            AND NOT EXISTS (SELECT FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = k.key AND p.state = 1 AND p.seq < k.seq)
            AND NOT ($8 AND EXISTS (SELECT FROM "outbox" AS d WHERE d.state IN (1, 2) AND d.key = k.key AND d.state = 2 AND d.seq < k.seq))
          LIMIT 1
            FOR UPDATE SKIP LOCKED) AS h
   WHERE h.tid = k.tid
   LIMIT $1 - (SELECT count(*) FROM keyless)),
turns AS MATERIALIZED (SELECT *, row_number() OVER () AS turn FROM heads),
size AS MATERIALIZED (SELECT ($1 - (SELECT count(*) FROM keyless)) / greatest(count(*), 1) - 1 AS n_behind FROM heads),
-- The rows behind each head up to the first that is not claimable, whatever its topic.
behind AS MATERIALIZED (
  SELECT t.key, t.turn, r.tid, r.seq, r.attempts, r.bytes,
         bool_and(r.is_free AND r.seq < coalesce(p.seq, r.seq + 1) AND r.seq < coalesce(d.seq, r.seq + 1))
           OVER (PARTITION BY t.key ORDER BY r.seq) AS is_next
    FROM turns AS t
   CROSS JOIN LATERAL (SELECT ctid AS tid, seq, attempts, octet_length(payload) AS bytes,
                              lease IS NULL AND ($5::text[] IS NULL OR topic = ANY ($5::text[])) AS is_free
                         FROM "outbox"
                        WHERE state = 0 AND seq > 0 AND key = t.key AND seq > t.seq
                        ORDER BY key, seq
                        LIMIT (SELECT n_behind FROM size)) AS r
    LEFT JOIN LATERAL (SELECT seq FROM "outbox" AS p WHERE p.state IN (1, 2) AND p.key = t.key AND p.state = 1 AND p.seq > t.seq
                        ORDER BY p.key, p.state, p.seq LIMIT 1) AS p ON true
    LEFT JOIN LATERAL (SELECT seq FROM "outbox" AS d WHERE $8 AND d.state IN (1, 2) AND d.key = t.key AND d.state = 2 AND d.seq > t.seq
                        ORDER BY d.key, d.state, d.seq LIMIT 1) AS d ON true),
locked AS MATERIALIZED (
  SELECT ctid AS tid FROM "outbox"
   WHERE ctid = ANY (ARRAY(SELECT tid FROM behind WHERE is_next)) AND state = 0 AND lease IS NULL
     FOR UPDATE SKIP LOCKED),
-- A run ends before the first row that was not locked, and where a dead letter blocks, behind the first one that
-- this claim makes dead.
runs AS (
  SELECT r.tid, r.turn, r.bytes, row_number() OVER run AS place, bool_and(r.is_own) OVER run AS is_whole,
         $8 AND coalesce(bool_or(r.attempts >= $4) OVER (run ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), false) AS is_stopped
    FROM (SELECT tid, key, turn, seq, attempts, bytes, true AS is_own FROM turns
           UNION ALL
          SELECT tid, key, turn, seq, attempts, bytes, b.tid IN (SELECT tid FROM locked)
            FROM behind AS b WHERE is_next) AS r
  WINDOW run AS (PARTITION BY r.key ORDER BY r.seq)),
keyed AS MATERIALIZED (SELECT tid, turn, place, bytes FROM runs WHERE is_whole AND NOT is_stopped),
-- What is left of the limit is filled up with messages without a key.
rest AS (
  SELECT ctid AS tid, seq, octet_length(payload) AS bytes
    FROM "outbox"
   WHERE state = 0 AND seq > 0 AND key IS NULL AND seq > coalesce((SELECT max(seq) FROM keyless), 0) AND lease IS NULL
     AND ($5::text[] IS NULL OR topic = ANY ($5::text[]))
   ORDER BY key, seq
   LIMIT $1 - (SELECT count(*) FROM keyless) - (SELECT count(*) FROM keyed)
     FOR UPDATE SKIP LOCKED),
cut AS (
  SELECT tid, row_number() OVER running AS place, sum(bytes) OVER running AS bytes
    FROM (SELECT tid, turn, place, bytes FROM keyed
           UNION ALL
          SELECT tid, 0, row_number() OVER (ORDER BY seq), bytes FROM (SELECT * FROM keyless UNION ALL SELECT * FROM rest) AS n) AS c
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
