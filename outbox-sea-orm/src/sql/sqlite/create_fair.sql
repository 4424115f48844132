
-- Turns. A lane is a key, or the value of a header, and a topic; U+0001 tells them apart, since topics have no
-- control characters.
ALTER TABLE "outbox" ADD COLUMN lane TEXT GENERATED ALWAYS AS (coalesce(key, '') || char(1) || topic) VIRTUAL;
CREATE INDEX "outbox_lanes" ON "outbox" (lane, seq) WHERE state = 0 AND lease IS NULL;
