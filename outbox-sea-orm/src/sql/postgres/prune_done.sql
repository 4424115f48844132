-- $1 age in microseconds, $2 limit. One bounded step, oldest first. Index: outbox_done. A place is unique within a partition
-- only, hence the pairs; the array is what finds the rows without a walk.
WITH picked AS MATERIALIZED (
  SELECT tableoid AS part, ctid AS tid FROM "outbox"
   WHERE state = 3 AND done_at < (SELECT clock_timestamp() - $1::bigint * interval '1 microsecond')
   ORDER BY done_at
   LIMIT $2
     FOR UPDATE SKIP LOCKED)
DELETE FROM "outbox"
 WHERE state = 3 AND ctid = ANY (ARRAY(SELECT tid FROM picked)) AND (tableoid, ctid) IN (SELECT part, tid FROM picked)
