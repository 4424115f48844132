-- $1 keys in the order of their bytes, $2 ids of their messages, $3 for how long they are honoured in microseconds. Takes the
-- keys that are not there or have expired, and returns them; waits as take_key. In the order of the keys, so that
-- two calls do not wait for each other; those that are honoured are passed over, so that repeats lock nothing.
INSERT INTO "outbox_dedup" AS k (dedup_key, id, expires_at)
SELECT d.dedup_key, d.id, clock_timestamp() + $3::bigint * interval '1 microsecond'
  FROM unnest($1::text[], $2::uuid[]) AS d (dedup_key, id)
 WHERE NOT EXISTS (SELECT FROM "outbox_dedup" AS t WHERE t.dedup_key = d.dedup_key AND t.expires_at > clock_timestamp())
 ORDER BY d.dedup_key COLLATE "C"
ON CONFLICT (dedup_key) DO UPDATE SET id = excluded.id, expires_at = excluded.expires_at
 WHERE k.expires_at <= clock_timestamp()
RETURNING dedup_key
