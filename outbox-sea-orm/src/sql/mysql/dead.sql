-- Parameter: ids in hexadecimal as a JSON array. Which of them are dead letters, by their places from 1.
SELECT CAST(i.n AS SIGNED)
  FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, id CHAR(32) PATH '$')) AS i
  STRAIGHT_JOIN `outbox` AS t FORCE INDEX (`outbox_id`) ON t.id = UNHEX(i.id)
 WHERE t.state = 2
