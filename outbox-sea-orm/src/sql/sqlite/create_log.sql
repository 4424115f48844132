-- The log: append-only, read by consumer groups. Version 1. Times are milliseconds since 1970, by the clock of the host.
CREATE TABLE "log" ( -- log schema version 1
  -- The order of reading, which is that of commits: who writes has the file alone. A number is never drawn twice, even when
  -- the rows with the highest ones are gone.
  seq          INTEGER PRIMARY KEY AUTOINCREMENT,
  id           BLOB NOT NULL,
  topic        TEXT NOT NULL,
  key          TEXT,
  payload      BLOB NOT NULL,
  headers      TEXT NOT NULL DEFAULT '{}',
  created_at   INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
  state        INTEGER NOT NULL DEFAULT 0,       -- 0 due when it is committed, 1 due at available_at
  available_at INTEGER,
  CONSTRAINT "log_state" CHECK (state IN (0, 1) AND (state = 1) = (available_at IS NOT NULL))
);

-- One row a consumer group: which topics it wants as a JSON array, NULL for all, and how far it has read.
CREATE TABLE "log_groups" (
  name     TEXT NOT NULL PRIMARY KEY,
  topics   TEXT,
  position INTEGER NOT NULL
) WITHOUT ROWID;

-- One row a claim that is not settled yet: from_seq is below its first message and to_seq is its last one. Of the n messages
-- with a topic among topics, done says by their place which ones are settled: a text of digits, 1 where it is; NULL is none.
CREATE TABLE "log_ranges" (
  token        BLOB NOT NULL PRIMARY KEY,
  group_name   TEXT NOT NULL,
  from_seq     INTEGER NOT NULL,
  to_seq       INTEGER NOT NULL,
  topics       TEXT,
  n            INTEGER NOT NULL,
  done         TEXT,
  leased_until INTEGER NOT NULL
) WITHOUT ROWID;
