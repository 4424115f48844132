-- The raw floor of the log: one table, one cursor. FROZEN.
DROP SCHEMA IF EXISTS floor_log CASCADE;
CREATE SCHEMA floor_log;
CREATE TABLE floor_log.log (
  seq        bigint GENERATED ALWAYS AS IDENTITY,
  id         uuid NOT NULL,
  topic      text NOT NULL,
  key        text,
  payload    bytea NOT NULL,
  headers    jsonb NOT NULL DEFAULT '{}',
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON floor_log.log (seq);
CREATE TABLE floor_log.cursor (name text PRIMARY KEY, position bigint NOT NULL) WITH (fillfactor = 10);
INSERT INTO floor_log.cursor VALUES ('group', 0);
