-- $1 guard, $2 channel, $3 whether the other sleepers must be told that nobody stands guard any more.
SELECT pg_advisory_unlock($1), pg_advisory_unlock($1 + 1), CASE WHEN $3 THEN pg_notify($2, '')::text END
