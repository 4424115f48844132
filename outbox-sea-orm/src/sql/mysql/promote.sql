-- Parameter: limit, at most 1,000. Makes parked rows that are due ready, as new arrivals in the order in which they
-- became due.
UPDATE (SELECT due.seq, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 + ROW_NUMBER() OVER (ORDER BY due.due, due.topic, due.seq) - 1 AS place
          FROM (SELECT seq, due, topic
                  FROM `outbox` FORCE INDEX (`outbox_agenda`)
                 WHERE state = 1 AND due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000
                 ORDER BY due, topic, seq
                 LIMIT ?
                   FOR UPDATE SKIP LOCKED) AS due) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.state = 0, m.place = IF(m.place = 0, 0, p.place), m.due = p.place
