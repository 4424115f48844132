-- Parameters: whether a dead letter blocks its key; max_attempts, whether all topics, the topics, twice; how many rows at most. Messages whose lease expired and that nothing but such messages precedes in their key, read
-- without locks, in the order of their numbers: number, key, attempts.
SELECT x.seq, x.`key`, x.attempts
  FROM (SELECT c.seq, c.`key`, c.attempts, LEAST(
                 COALESCE((SELECT seq FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 0 AND `key` = c.`key` AND place = 0 ORDER BY state, `key`, place, seq LIMIT 1), 9223372036854775807),
                 COALESCE((SELECT seq FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 1 AND `key` = c.`key` AND place = 0 ORDER BY state, `key`, place, seq LIMIT 1), 9223372036854775807),
                 COALESCE((SELECT seq FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE ? AND state = 2 AND `key` = c.`key` AND place = 0 ORDER BY state, `key`, place, seq LIMIT 1), 9223372036854775807),
                 COALESCE((SELECT MIN(seq) FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 4 AND `key` = c.`key` AND place = 0
                              AND NOT (due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AND attempts < ? AND (? OR topic IN (?)))), 9223372036854775807)) AS barrier
          FROM `outbox` AS c FORCE INDEX (`outbox_agenda`)
         WHERE state = 4 AND due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AND attempts < ? AND (? OR topic IN (?))) AS x
 WHERE x.seq < x.barrier
 ORDER BY x.seq
 LIMIT ?
