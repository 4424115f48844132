
-- Order per key. Keys compare by their bytes, so that walks over them are fast and no upgrade of the system's
-- collations breaks their index.
ALTER TABLE "outbox" ALTER COLUMN key TYPE text COLLATE "C";
CREATE INDEX "outbox_keys" ON "outbox" (key, seq) WHERE state = 0;
CREATE INDEX "outbox_held" ON "outbox" (key, state, seq) WHERE state IN (1, 2) AND key IS NOT NULL;
