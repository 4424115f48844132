-- Parameters: keys, which take_keys has locked. The messages of those that are honoured, also of one that was committed after
-- the snapshot of a transaction under REPEATABLE READ.
SELECT dedup_key, id
  FROM `outbox_dedup`
 WHERE dedup_key IN (?) AND expires_at > UTC_TIMESTAMP(6)
   FOR UPDATE
