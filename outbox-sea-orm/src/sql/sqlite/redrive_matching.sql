-- The filter: ?1 topic, ?2 key, ?3 part of the error, ?4 least and ?5 greatest age in milliseconds, each may be NULL;
-- ?6 limit, ?7 whether rows with a key keep their number. As redrive, in the order of the numbers. Index: outbox_dead.
UPDATE "outbox"
   SET state = 0, seq = CASE WHEN ?7 AND key IS NOT NULL THEN seq ELSE (SELECT max(seq) FROM "outbox") + d.place END, attempts = 0, dead_at = NULL, lease = NULL, leased_until = NULL,
       available_at = CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
  FROM (SELECT seq AS old, row_number() OVER (ORDER BY seq) AS place
          FROM (SELECT seq FROM "outbox"
                 WHERE state = 2
                   AND (?1 IS NULL OR topic = ?1) AND (?2 IS NULL OR key = ?2)
                   AND (?3 IS NULL OR instr(last_error, ?3) > 0)
                   AND (?4 IS NULL OR dead_at <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?4)
                   AND (?5 IS NULL OR dead_at >= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - ?5)
                 ORDER BY seq
                 LIMIT ?6)) AS d
 WHERE seq = d.old
