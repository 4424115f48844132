-- One parameter a key. The messages of keys that take_keys has left, which are honoured.
SELECT dedup_key, id
  FROM "outbox_dedup"
 WHERE dedup_key IN (VALUES (?))
