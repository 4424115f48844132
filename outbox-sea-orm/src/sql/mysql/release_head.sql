-- Parameters: id, key, whether a dead letter blocks its key. Makes a message of the key that waits or is dead ready at its place; a dead
-- one with all its attempts. That it is the first, blocked_keys has said before: none can come before it since.
UPDATE (SELECT seq, state, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AS fresh
          FROM `outbox` FORCE INDEX (`outbox_id`)
         WHERE id = ? AND `key` = ? AND (state = 1 OR ? AND state = 2)
         LIMIT 1
           FOR UPDATE) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.attempts = IF(p.state = 2, 0, m.attempts), m.state = 0, m.due = p.fresh, m.due_since = p.fresh, m.dead_at = NULL
