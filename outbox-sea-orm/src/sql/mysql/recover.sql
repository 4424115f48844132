-- Parameters: whether all topics, the topics, attempts, limit, max_bytes, token, lease in microseconds.
-- Claims messages whose lease expired, apart from all others: one of them may have killed its process. look.sql says
-- how many attempts the first of them has had, the caller how many of as many attempts may come together. The row
-- keeps its place. Sorts, hence locks, all of them: they are few.
UPDATE (SELECT cut.seq
          FROM (SELECT picked.seq, ROW_NUMBER() OVER (ORDER BY picked.place, picked.topic, picked.seq) AS number,
                       SUM(picked.bytes) OVER (ORDER BY picked.place, picked.topic, picked.seq ROWS UNBOUNDED PRECEDING) AS bytes
                  FROM (SELECT seq, place, topic, LENGTH(payload) AS bytes
                          FROM `outbox` FORCE INDEX (`outbox_agenda`)
                         WHERE state = 4 AND due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AND (? OR topic IN (?)) AND attempts = ?
                         ORDER BY place, topic, seq
                         LIMIT ?
                           FOR UPDATE SKIP LOCKED) AS picked) AS cut
         WHERE cut.bytes <= ? OR cut.number = 1) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.history = JSON_ARRAY_APPEND(IF(JSON_LENGTH(m.history) >= 10, JSON_REMOVE(m.history, '$[0]'), COALESCE(m.history, '[]')), '$',
         JSON_OBJECT('attempt', m.attempts, 'at', DATE_FORMAT(TIMESTAMPADD(MICROSECOND, m.due DIV 1000, '1970-01-01'), '%Y-%m-%dT%H:%i:%s.%fZ'), 'error', 'lease expired')),
       m.lease = ?, m.due = LAST_INSERT_ID((TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + ?) * 1000),
       m.fence = m.fence + 1, m.attempts = m.attempts + 1
