-- $1 group. Lets the slot take over, once everything that it does not deliver has been read; nothing can appear there any more.
UPDATE "log_groups" AS g SET position = fed_above
 WHERE name = $1 AND position < fed_above
   AND NOT EXISTS (SELECT FROM "log" AS l WHERE l.seq > g.position AND l.seq <= g.fed_above)
