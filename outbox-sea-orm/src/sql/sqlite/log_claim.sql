-- ?1 group, ?2 topics that are served as a JSON array or NULL, ?3 how many rows to examine, ?4 whether keys matter. The next
-- rows of the log that the group wants: number, key, size, and whether this claim serves it. Before that, in each row: the group's
-- position, how many rows were examined and the last one's number. One row at least, where there is such a group.
WITH examined AS MATERIALIZED (
  SELECT seq, CASE WHEN ?4 THEN key END AS key, length(payload) AS bytes,
         state = 0 AND (?2 IS NULL OR topic IN (SELECT value FROM json_each(?2))) AS is_served,
         (SELECT topics FROM "log_groups" WHERE name = ?1) IS NULL
         OR topic IN (SELECT value FROM json_each((SELECT topics FROM "log_groups" WHERE name = ?1))) AS is_wanted
    FROM "log"
   WHERE seq > (SELECT position FROM "log_groups" WHERE name = ?1)
   ORDER BY seq
   LIMIT ?3)
SELECT g.position, e.n, e.upto, x.seq, x.key, x.bytes, x.is_served
  FROM "log_groups" AS g
 CROSS JOIN (SELECT count(*) AS n, max(seq) AS upto FROM examined) AS e
  LEFT JOIN examined AS x ON x.is_wanted
 WHERE g.name = ?1
 ORDER BY x.seq
