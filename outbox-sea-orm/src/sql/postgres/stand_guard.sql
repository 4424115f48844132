-- $1 guard. One sleeper stands guard, chosen by a second lock next to the guard; that one is not waited for, the
-- guard itself is free within microseconds because producers hold it only in passing.
SELECT chosen.leader, CASE WHEN chosen.leader THEN pg_advisory_lock($1)::text END
  FROM (SELECT pg_try_advisory_lock($1 + 1) AS leader OFFSET 0) AS chosen
