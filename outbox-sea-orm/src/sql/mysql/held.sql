-- Parameter: numbers and tokens as in settle_done. Which of them are good, by their places from 1.
SELECT CAST(i.n AS SIGNED)
  FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, seq BIGINT PATH '$[0]', token CHAR(32) PATH '$[1]')) AS i
  STRAIGHT_JOIN `outbox` AS t FORCE INDEX (PRIMARY) ON t.seq = i.seq
 WHERE t.state = 4 AND t.lease = UNHEX(i.token)
