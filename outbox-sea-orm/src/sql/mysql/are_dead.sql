-- Parameter: numbers as a JSON array. Which of these messages are dead letters.
SELECT t.seq
  FROM JSON_TABLE(?, '$[*]' COLUMNS (seq BIGINT PATH '$')) AS i
  STRAIGHT_JOIN `outbox` AS t FORCE INDEX (PRIMARY) ON t.seq = i.seq
 WHERE t.state = 2
