-- Parameters: whether all topics and the topics, three times; the second and third time max_attempts behind them.
-- What a claim needs to know before it writes, in one read: whether a ready row is there, whether parked rows are due,
-- whether expired ones are out of attempts, how many attempts the first of the other expired ones has had, and in how
-- many microseconds the next parked row is due or the next lease expires.
SELECT EXISTS (SELECT 1 FROM `outbox` FORCE INDEX (`outbox_agenda`) WHERE state = 0 AND (? OR topic IN (?))),
       EXISTS (SELECT 1 FROM `outbox` FORCE INDEX (`outbox_agenda`)
                WHERE state = 1 AND due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000),
       EXISTS (SELECT 1 FROM `outbox` FORCE INDEX (`outbox_agenda`)
                WHERE state = 4 AND due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AND (? OR topic IN (?)) AND attempts >= ?),
       (SELECT attempts FROM `outbox` FORCE INDEX (`outbox_agenda`)
         WHERE state = 4 AND due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AND (? OR topic IN (?)) AND attempts < ?
         ORDER BY place, topic, seq LIMIT 1),
       LEAST(COALESCE((SELECT MIN(due) FROM `outbox` FORCE INDEX (`outbox_agenda`)
                        WHERE state = 1 AND due > TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000), 9000000000000000000),
             COALESCE((SELECT MIN(due) FROM `outbox` FORCE INDEX (`outbox_agenda`)
                        WHERE state = 4 AND due > TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000), 9000000000000000000)) DIV 1000
         - TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))
