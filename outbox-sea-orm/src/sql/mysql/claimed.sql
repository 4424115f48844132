-- Parameters: the end of the leases, token. What a claim took, in order.
SELECT seq, id, topic, `key`, payload, headers, created_at, attempts, fence, 0
  FROM `outbox` FORCE INDEX (`outbox_agenda`)
 WHERE state = 4 AND due = ? AND lease = ?
 ORDER BY place, seq
