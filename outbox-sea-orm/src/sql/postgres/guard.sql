-- The key of the guard and the name of the channel, as the trigger computes them. The number beside the guard is free.
SELECT 8031453474740764672 + 2 * "table".oid::bigint, 'outbox_' || "table".oid FROM (SELECT '"outbox"'::regclass::oid) AS "table" (oid)
