-- Parameters: [[number, turn, place], …] as JSON, attempts, max_bytes, token, lease in microseconds. As recover, of what expired.sql has
-- found; of each key a run up to the first that is not locked or not as it was, as in claim_ordered.
UPDATE (SELECT cut.seq
          FROM (SELECT run.seq, ROW_NUMBER() OVER (ORDER BY run.n) AS number,
                       SUM(run.bytes) OVER (ORDER BY run.n ROWS UNBOUNDED PRECEDING) AS bytes
                  FROM (SELECT locked.*, ROW_NUMBER() OVER (PARTITION BY locked.turn ORDER BY locked.place) AS got
                          FROM (SELECT i.n, i.turn, i.place, t.seq, LENGTH(t.payload) AS bytes
                                  FROM JSON_TABLE(?, '$[*]' COLUMNS (n FOR ORDINALITY, seq BIGINT PATH '$[0]', turn BIGINT PATH '$[1]', place BIGINT PATH '$[2]')) AS i
                                  STRAIGHT_JOIN `outbox` AS t FORCE INDEX (PRIMARY) ON t.seq = i.seq
                                 WHERE t.state = 4 AND t.due <= TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 AND t.attempts = ?
                                   /*!80017 FOR UPDATE OF t SKIP LOCKED */ /*M!100600 FOR UPDATE SKIP LOCKED */) AS locked) AS run
                 WHERE run.got = run.place) AS cut
         WHERE cut.bytes <= ? OR cut.number = 1) AS p
  STRAIGHT_JOIN `outbox` AS m FORCE INDEX (PRIMARY) ON m.seq = p.seq
   SET m.history = JSON_ARRAY_APPEND(IF(JSON_LENGTH(m.history) >= 10, JSON_REMOVE(m.history, '$[0]'), COALESCE(m.history, '[]')), '$',
         JSON_OBJECT('attempt', m.attempts, 'at', DATE_FORMAT(TIMESTAMPADD(MICROSECOND, m.due DIV 1000, '1970-01-01'), '%Y-%m-%dT%H:%i:%s.%fZ'), 'error', 'lease expired')),
       m.lease = ?, m.due = LAST_INSERT_ID((TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) + ?) * 1000),
       m.fence = m.fence + 1, m.attempts = m.attempts + 1
