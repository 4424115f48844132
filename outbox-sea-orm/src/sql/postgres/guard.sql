-- The key of the guard and the name of the channel, as the trigger computes them. The number beside the guard is free. And what
-- the session was told at its start: a transaction pooler does not pass that on.
SELECT 8031453474740764672 + 2 * "table".oid::bigint, 'outbox_' || "table".oid, coalesce(current_setting('outbox.session', true), '')
  FROM (SELECT '"outbox"'::regclass::oid) AS "table" (oid)
