
-- Order per key. Keys compare by their bytes, so that walks over them are fast and no upgrade of the system's
-- collations breaks their index.
ALTER TABLE "outbox" ALTER COLUMN key TYPE text COLLATE "C";
-- All numbers are above 0. Only a statement that says so can be given this index: planned while the table was almost empty, one that
-- looks for numbers would walk all of it, and go on to when there is a backlog.
CREATE INDEX "outbox_keys" ON "outbox" (key, seq) WHERE state = 0 AND seq > 0;
-- What holds those behind it and has kept an old number: parked, dead, or ready again after that.
CREATE INDEX "outbox_held" ON "outbox" (key, state, seq) WHERE key IS NOT NULL AND (state IN (1, 2) OR state = 0 AND available_at IS NOT NULL);
