-- Parameters: mark, limit, token, lease in seconds. FROZEN.
UPDATE (SELECT seq FROM outbox
         WHERE state = 0 AND seq > ? AND leased_until <= UTC_TIMESTAMP(6)
         ORDER BY seq LIMIT ? FOR UPDATE SKIP LOCKED) AS p
  STRAIGHT_JOIN outbox AS m ON m.seq = p.seq
   SET m.lease = ?, m.leased_until = UTC_TIMESTAMP(6) + INTERVAL ? SECOND, m.attempts = m.attempts + 1
