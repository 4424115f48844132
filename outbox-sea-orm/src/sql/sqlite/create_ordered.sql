
-- Order per key.
CREATE INDEX "outbox_keys" ON "outbox" (key, seq) WHERE state = 0;
CREATE INDEX "outbox_held" ON "outbox" (key, state, seq) WHERE state IN (1, 2) AND key IS NOT NULL;
