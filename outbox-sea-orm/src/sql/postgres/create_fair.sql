
-- Turns. A lane is a key, or the value of a header, and a topic; U+0001 tells them apart, since topics have no
-- control characters. Lanes compare by their bytes. A claim changes nothing of which the lane is made, and stays a
-- heap-only update.
ALTER TABLE "outbox" ADD COLUMN lane text COLLATE "C" GENERATED ALWAYS AS (coalesce(key, '') || chr(1) || topic) STORED;
-- As outbox_keys of an ordered table, only for statements that say that numbers are above 0.
CREATE INDEX "outbox_lanes" ON "outbox" (lane, seq) WHERE state = 0 AND seq > 0;
