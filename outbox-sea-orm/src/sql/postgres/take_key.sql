-- $1 key, $2 id of its message, $3 for how long it is honoured in microseconds. Waits for a transaction that has taken the key
-- and not ended. No row: the key is there, honoured or not. Without a conflict target and without RETURNING, for which a
-- producer would need SELECT; and without a lock on the row of a key that is there, which would make repeats wait for each
-- other.
INSERT INTO "outbox_dedup" (dedup_key, id, expires_at)
VALUES ($1, $2, clock_timestamp() + $3::bigint * interval '1 microsecond')
ON CONFLICT DO NOTHING
