-- Parameters: whether a dead letter blocks its key; three times how far to count and one less; the key to begin at and how many
-- rows to read, twice; whether a dead letter blocks its key, and both again; how many rows, twice. Reads so many rows that are claimed, wait
-- or (where that blocks) are dead, in the order of their keys. One row a key: its first message that is not over with, its state,
-- whether it is leased, in how many microseconds it is due or its lease ends, its error, how many are behind it, and how many of
-- the rows read are of the key. No range depends on another row: it would be read from the beginning. So what is behind is
-- counted by equality, as all that wait but the first. The last LIMIT keeps x from being merged: MariaDB would not find k when the
-- statement is executed again. Order by all columns of the index: MySQL would sort the rows of a key otherwise.
SELECT x.`key`, m.id, m.topic, m.state, m.state = 4, m.due DIV 1000 - TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)),
       COALESCE(m.last_error, ''), x.n_waiting - (m.state <> 2), x.n_read
  FROM (SELECT k.`key`, k.n_read,
               LEAST(COALESCE((SELECT seq FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 0 AND `key` = k.`key` AND place = 0 ORDER BY state, `key`, place, seq LIMIT 1), 9223372036854775807),
                     COALESCE((SELECT seq FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 1 AND `key` = k.`key` AND place = 0 ORDER BY state, `key`, place, seq LIMIT 1), 9223372036854775807),
                     COALESCE((SELECT seq FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 4 AND `key` = k.`key` AND place = 0 ORDER BY state, `key`, place, seq LIMIT 1), 9223372036854775807),
                     COALESCE((SELECT seq FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE ? AND state = 2 AND `key` = k.`key` AND place = 0 ORDER BY state, `key`, place, seq LIMIT 1), 9223372036854775807)) AS head,
               COALESCE((SELECT CAST(? AS SIGNED) FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 0 AND `key` = k.`key` AND place = 0 LIMIT 1 OFFSET ?),
                        (SELECT COUNT(*) FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 0 AND `key` = k.`key` AND place = 0)) +
               COALESCE((SELECT CAST(? AS SIGNED) FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 1 AND `key` = k.`key` AND place = 0 LIMIT 1 OFFSET ?),
                        (SELECT COUNT(*) FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 1 AND `key` = k.`key` AND place = 0)) +
               COALESCE((SELECT CAST(? AS SIGNED) FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 4 AND `key` = k.`key` AND place = 0 LIMIT 1 OFFSET ?),
                        (SELECT COUNT(*) FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 4 AND `key` = k.`key` AND place = 0)) AS n_waiting
          FROM (SELECT h.`key`, COUNT(*) AS n_read
                  FROM ((SELECT `key` FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 1 AND `key` >= ? ORDER BY `key`, place, seq LIMIT ?)
                        UNION ALL
                        (SELECT `key` FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE state = 4 AND `key` >= ? ORDER BY `key`, place, seq LIMIT ?)
                        UNION ALL
                        (SELECT `key` FROM `outbox` FORCE INDEX (`outbox_keys`) WHERE ? AND state = 2 AND `key` >= ? ORDER BY `key`, place, seq LIMIT ?)
                        ORDER BY `key` LIMIT ?) AS h
                 GROUP BY h.`key`) AS k
         LIMIT ?) AS x
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = x.head
 ORDER BY x.`key`
