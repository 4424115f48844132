-- Parameter: token. As claimed, from all claimed rows: where some of what a claim took is dead, or where a trigger of somebody's
-- writes, after which the OK packet does not bring the end of the leases.
SELECT seq, id, topic, `key`, payload, headers, created_at, attempts, fence, 0
  FROM `outbox` FORCE INDEX (`outbox_agenda`)
 WHERE state = 4 AND lease = ?
 ORDER BY place, seq
