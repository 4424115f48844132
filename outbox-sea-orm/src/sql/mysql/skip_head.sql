-- Parameters: id, key, whether a dead letter blocks its key. Removes a message of the key that waits or is dead. That it is the first,
-- blocked_keys has said before: none can come before it since.
DELETE m
  FROM (SELECT seq
          FROM `outbox` FORCE INDEX (`outbox_id`)
         WHERE id = ? AND `key` = ? AND (state = 1 OR ? AND state = 2)
         LIMIT 1
           FOR UPDATE) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
