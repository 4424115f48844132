-- The inbox table: which message a consumer group has processed. Times are milliseconds since 1970.
CREATE TABLE "inbox" ( -- inbox schema version 1
  group_name   TEXT NOT NULL,
  message_id   BLOB NOT NULL,
  fingerprint  TEXT,
  metadata     TEXT NOT NULL DEFAULT '{}',
  result       TEXT,
  processed_at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
  PRIMARY KEY (group_name, message_id)
) WITHOUT ROWID;
CREATE INDEX "inbox_processed_at" ON "inbox" (group_name, processed_at);
