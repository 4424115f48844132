-- The columns of the PostgreSQL floor, times in milliseconds since 1970. FROZEN.
CREATE TABLE outbox (
  seq          INTEGER PRIMARY KEY AUTOINCREMENT,
  id           BLOB NOT NULL UNIQUE,
  topic        TEXT NOT NULL,
  key          TEXT,
  payload      BLOB NOT NULL,
  headers      TEXT NOT NULL DEFAULT '{}',
  created_at   INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
  state        INTEGER NOT NULL DEFAULT 0,
  available_at INTEGER,
  leased_until INTEGER NOT NULL DEFAULT 0,
  lease        BLOB,
  attempts     INTEGER NOT NULL DEFAULT 0,
  last_error   TEXT
);
