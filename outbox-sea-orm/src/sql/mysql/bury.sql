-- Parameters: whether all topics, the topics, max_attempts, limit. Messages whose lease expired in their last attempt
-- become dead without being handed out again.
UPDATE (SELECT seq
          FROM `outbox` FORCE INDEX (`outbox_agenda`)
         WHERE state = 4 AND due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AND (? OR topic IN (?)) AND attempts >= ?
         ORDER BY due, topic, seq
         LIMIT ?
           FOR UPDATE SKIP LOCKED) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.history = JSON_ARRAY_APPEND(IF(JSON_LENGTH(m.history) >= 10, JSON_REMOVE(m.history, '$[0]'), COALESCE(m.history, '[]')), '$',
         JSON_OBJECT('attempt', m.attempts, 'at', DATE_FORMAT(TIMESTAMPADD(MICROSECOND, m.due DIV 1000, '1970-01-01'), '%Y-%m-%dT%H:%i:%s.%fZ'), 'error', 'lease expired')),
       m.state = 2, m.lease = NULL, m.due = m.seq, m.dead_at = UTC_TIMESTAMP(6),
       m.last_error = CONCAT('lease expired in attempt ', m.attempts)
