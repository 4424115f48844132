-- $1 names of sessions. The name of this one, and whether it or another one of those is there, as in log_horizon.
SELECT me.name, me.name = ANY (me.known) OR "is_there"
  FROM (SELECT "named_session" AS name, $1::text[] AS known OFFSET 0) AS me
