
-- Order per key. Keys compare by their bytes, so that walks over them are fast and no upgrade of the system's
-- collations breaks their index.
ALTER TABLE "outbox" ALTER COLUMN key TYPE text COLLATE "C";
CREATE INDEX "outbox_keys" ON "outbox" (key, seq) WHERE state = 0;
-- What holds those behind it and has kept an old number: parked, dead, or ready again after that.
CREATE INDEX "outbox_held" ON "outbox" (key, state, seq) WHERE key IS NOT NULL AND (state IN (1, 2) OR state = 0 AND available_at IS NOT NULL);
