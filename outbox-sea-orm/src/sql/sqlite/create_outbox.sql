-- The outbox table. Times are milliseconds since 1970, by the clock of the host.
CREATE TABLE "outbox" ( -- outbox schema version 1
  -- Claim order. A row that becomes claimable again draws a new one.
  seq          INTEGER PRIMARY KEY,
  id           BLOB NOT NULL,
  topic        TEXT NOT NULL,
  key          TEXT,
  payload      BLOB NOT NULL,
  headers      TEXT NOT NULL DEFAULT '{}',
  created_at   INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
  state        INTEGER NOT NULL DEFAULT 0,       -- 0 ready or claimed, 1 parked until available_at, 2 dead, 3 done and kept
  available_at INTEGER,                          -- kept when the row is made ready: how long it has been due counts from here
  lease        BLOB,
  leased_until INTEGER,
  attempts     INTEGER NOT NULL DEFAULT 0,
  fence        INTEGER NOT NULL DEFAULT 0,
  last_error   TEXT,
  dead_at      INTEGER,
  done_at      INTEGER,
  history      TEXT,                             -- of failed attempts, the last ten: attempt, at, error
  CONSTRAINT "outbox_id" UNIQUE (id),
  CONSTRAINT "outbox_state" CHECK (state IN (0, 1, 2, 3) AND (state <> 1 OR available_at IS NOT NULL) AND (state = 3) = (done_at IS NOT NULL)),
  CONSTRAINT "outbox_lease" CHECK ((lease IS NULL) = (leased_until IS NULL)),
  CONSTRAINT "outbox_attempts" CHECK (attempts >= 0)
);
-- With the topic in it, a claim passes over topics that it does not serve without reading their rows.
CREATE INDEX "outbox_ready" ON "outbox" (seq, topic) WHERE state = 0 AND lease IS NULL;
CREATE INDEX "outbox_leased" ON "outbox" (leased_until) WHERE state = 0 AND lease IS NOT NULL;
CREATE INDEX "outbox_parked" ON "outbox" (available_at) WHERE state = 1;
CREATE INDEX "outbox_dead" ON "outbox" (seq) WHERE state = 2;
-- Empty, and so for free, unless delivered messages are kept.
CREATE INDEX "outbox_done" ON "outbox" (done_at) WHERE state = 3;

-- Which message was the first with a deduplication key, and until when a repeat is answered with it. A table that is
-- dropped by hand leaves it behind.
CREATE TABLE IF NOT EXISTS "outbox_dedup" (
  dedup_key  TEXT NOT NULL PRIMARY KEY,
  id         BLOB NOT NULL,
  expires_at INTEGER NOT NULL
) WITHOUT ROWID;
-- For pruning.
CREATE INDEX IF NOT EXISTS "outbox_dedup_expiry" ON "outbox_dedup" (expires_at);
