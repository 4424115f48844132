-- Parameters: the lane to begin at, how many rows to read. Ready rows in the order of lanes and of arrival, read without locks and
-- from the index alone. A range from a constant, which both servers begin where it begins.
SELECT lane, seq
  FROM `outbox` FORCE INDEX (`outbox_lanes`)
 WHERE state = 0 AND lane >= ?
 ORDER BY lane, place, seq
 LIMIT ?
