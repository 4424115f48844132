-- $1 age in microseconds, $2 limit. When the partitions begin and end that ended longer ago, the oldest first, and whether
-- this role may drop them. Only those that maintenance has made: by their names. In a session of style ISO.
SELECT p.starts, p.ends, p.is_own
  FROM (SELECT c.relname, bound[1]::timestamptz AS starts, bound[2]::timestamptz AS ends, pg_has_role(c.relowner, 'USAGE') AS is_own
          FROM pg_inherits AS i
          JOIN pg_class AS c ON c.oid = i.inhrelid
         CROSS JOIN regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.+)''\) TO \(''(.+)''\)') AS bound
         WHERE i.inhparent = '"outbox_done_all"'::regclass AND bound IS NOT NULL) AS p
 WHERE p.ends <= clock_timestamp() - $1::bigint * interval '1 microsecond'
   AND p.relname = trim('"' FROM '"outbox_done"') || to_char(p.starts AT TIME ZONE 'UTC', 'YYYYMMDDHH24')
 ORDER BY p.starts
 LIMIT $2
