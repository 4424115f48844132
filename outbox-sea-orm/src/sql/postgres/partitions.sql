-- When the partitions of delivered rows end, the last one first, the end of the current one by the table's interval, and whether
-- the rest holds rows. $1 hour, day, week or month. In a session of style ISO.
SELECT (SELECT max(bound[1]::timestamptz)
          FROM pg_inherits AS i
          JOIN pg_class AS c ON c.oid = i.inhrelid
         CROSS JOIN regexp_match(pg_get_expr(c.relpartbound, c.oid), ' TO \(''(.+)''\)') AS bound
         WHERE i.inhparent = '"outbox_done_all"'::regclass),
       (date_trunc($1, clock_timestamp() AT TIME ZONE 'UTC') + ('1 ' || $1)::interval) AT TIME ZONE 'UTC',
       EXISTS (SELECT FROM "outbox_done_rest")
