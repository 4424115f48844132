-- $1 hour, day, week or month, $2 how many there are to be behind the current one. When the partitions begin and end that are
-- missing, and whether rows may come for it while it is made. None that would overlap another, and none of which rows are in the rest: such a time stays there, where
-- they leave row by row. In a session of style ISO: the bounds are read from their text.
SELECT p.starts, p.ends, p.starts <= clock_timestamp() + interval '10 s'
  FROM (SELECT (now.starts + n * now.step) AT TIME ZONE 'UTC' AS starts, (now.starts + (n + 1) * now.step) AT TIME ZONE 'UTC' AS ends
          FROM (SELECT date_trunc($1, clock_timestamp() AT TIME ZONE 'UTC') AS starts, ('1 ' || $1)::interval AS step) AS now
         CROSS JOIN generate_series(0, $2::integer) AS n) AS p
 WHERE NOT EXISTS (SELECT FROM pg_inherits AS i
                     JOIN pg_class AS c ON c.oid = i.inhrelid
                    CROSS JOIN regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.+)''\) TO \(''(.+)''\)') AS bound
                    WHERE i.inhparent = '"outbox_done_all"'::regclass
                      AND bound[1]::timestamptz < p.ends AND bound[2]::timestamptz > p.starts)
   AND NOT EXISTS (SELECT FROM "outbox_done_rest" WHERE state = 3 AND done_at >= p.starts AND done_at < p.ends)
 ORDER BY p.starts
