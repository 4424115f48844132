-- $1 limit, $2 whether rows with a key keep their number. Makes parked rows that are due ready, the others as new
-- arrivals in the order in which they became due. The number is drawn by this statement, which holds its lock on the
-- table before: the horizon relies on it.
-- The subselect makes the time a bound of the walk over outbox_parked; the bare function would filter all of it.
UPDATE "outbox" AS m
   SET state = 0, seq = due.fresh
  FROM (SELECT d.ctid, CASE WHEN $2 AND d.key IS NOT NULL THEN d.seq
                            ELSE nextval((SELECT pg_get_serial_sequence('"outbox"', 'seq'))::regclass) END AS fresh
          FROM (SELECT ctid, key, seq FROM "outbox"
                 WHERE state = 1 AND available_at <= (SELECT clock_timestamp())
                 ORDER BY available_at, seq
                 LIMIT $1
                   FOR UPDATE SKIP LOCKED) AS d) AS due
 WHERE m.ctid = due.ctid AND m.state = 1
