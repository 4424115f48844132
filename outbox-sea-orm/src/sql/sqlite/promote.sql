-- ?1 limit, ?2 whether rows with a key keep their number. Makes parked rows that are due ready, the others as new
-- arrivals in the order in which they became due: the highest number in the table plus their place. Index: outbox_parked.
UPDATE "outbox"
   SET state = 0, seq = CASE WHEN ?2 AND key IS NOT NULL THEN seq ELSE (SELECT max(seq) FROM "outbox") + due.place END
  FROM (SELECT seq AS old, row_number() OVER (ORDER BY available_at, seq) AS place
          FROM (SELECT seq, available_at FROM "outbox"
                 WHERE state = 1 AND available_at <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
                 ORDER BY available_at, seq
                 LIMIT ?1)) AS due
 WHERE seq = due.old
