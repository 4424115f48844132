-- The table of the measurements behind docs/decisions/001, fresh for every run. FROZEN: a slower statement of the crates must show as a
-- worse ratio, so this file does not follow them.
DROP SCHEMA IF EXISTS floor CASCADE;
CREATE SCHEMA floor;
CREATE TABLE floor.outbox (
  seq          bigint GENERATED ALWAYS AS IDENTITY,
  id           uuid NOT NULL PRIMARY KEY,
  topic        text NOT NULL,
  key          text,
  payload      bytea NOT NULL,
  headers      jsonb NOT NULL DEFAULT '{}',
  created_at   timestamptz NOT NULL DEFAULT now(),
  state        smallint NOT NULL DEFAULT 0 CHECK (state IN (0, 1, 2)),
  available_at timestamptz,
  leased_until timestamptz NOT NULL DEFAULT '-infinity',
  lease        uuid,
  attempts     int NOT NULL DEFAULT 0,
  last_error   text,
  CHECK ((state = 1) = (available_at IS NOT NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ON floor.outbox (seq) WHERE state = 0;
CREATE INDEX ON floor.outbox (available_at) WHERE state = 1;
ANALYZE floor.outbox;
