-- Parameters: whether all topics, the topics, whether a dead letter blocks its key, the key to begin at, how many rows to look at.
-- Ready rows in the order of keys and numbers, read without locks: key, number, whether the topic is served, and in the first
-- row of each key the lowest number that is in the way of those behind it. All of one statement, hence of one view.
-- An equality on every column before seq makes each of the three probes a single step into the index.
SELECT q.`key`, q.seq,
       (? OR (SELECT topic IN (?) FROM `outbox` FORCE INDEX (PRIMARY) WHERE seq = q.seq)),
       IF(q.number > 1, NULL, LEAST(
         COALESCE((SELECT seq FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 4 AND `key` = q.`key` AND place = 0 ORDER BY state, `key`, place, seq LIMIT 1), 9223372036854775807),
         COALESCE((SELECT seq FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 1 AND `key` = q.`key` AND place = 0 ORDER BY state, `key`, place, seq LIMIT 1), 9223372036854775807),
         COALESCE((SELECT seq FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE ? AND state = 2 AND `key` = q.`key` AND place = 0 ORDER BY state, `key`, place, seq LIMIT 1), 9223372036854775807)))
  FROM (SELECT page.`key`, page.seq, ROW_NUMBER() OVER (PARTITION BY page.`key` ORDER BY page.seq) AS number
          FROM (SELECT `key`, seq FROM `outbox` FORCE INDEX (`outbox_keys`)
                 WHERE state = 0 AND `key` >= ?
                 ORDER BY `key`, place, seq
                 LIMIT ?) AS page) AS q
 ORDER BY q.`key`, q.seq
