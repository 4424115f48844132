-- One parameter an id, then whether rows with a key keep their number. Dead letters become ready again, otherwise as
-- new arrivals in the order of the ids.
WITH i (id) AS (VALUES (?)),
     d AS (SELECT id, row_number() OVER () AS place FROM i)
UPDATE "outbox"
   SET state = 0, seq = CASE WHEN ? AND key IS NOT NULL THEN seq ELSE (SELECT max(seq) FROM "outbox") + d.place END, attempts = 0, dead_at = NULL, lease = NULL, leased_until = NULL,
       available_at = CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
  FROM d
 WHERE "outbox".id = d.id AND "outbox".state = 2
RETURNING id
