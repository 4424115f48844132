-- Nine parameters a row: id, topic, key, payload, headers, state, place in the statement or NULL where the order of the key
-- counts, place plus the delay in nanoseconds, twice. The last line is repeated as often as there are drafts. A plain INSERT: one that ignores duplicates
-- would ignore other errors too. A duplicate fails this statement and nothing else of the transaction.
INSERT INTO `outbox` (id, topic, `key`, payload, headers, state, place, due, due_since)
VALUES
(?, ?, ?, ?, ?, ?, COALESCE(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 + ?, 0), TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 + ?, TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) * 1000 + ?)
