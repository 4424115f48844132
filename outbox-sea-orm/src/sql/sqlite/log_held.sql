-- ?1 keys as a JSON array. Those of which a message is in the group's own table. Indexes: outbox_keys, outbox_held.
SELECT k.value
  FROM json_each(?1) AS k
 WHERE EXISTS (SELECT 1 FROM "log_group" AS o WHERE o.state = 0 AND o.key = k.value)
    OR EXISTS (SELECT 1 FROM "log_group" AS o WHERE o.state IN (1, 2) AND o.key = k.value)
