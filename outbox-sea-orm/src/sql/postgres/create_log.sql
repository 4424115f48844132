-- The log: append-only, read by consumer groups. Version 1. Rename "log" as you like; its parts follow it.
CREATE TABLE "log" (
  -- The order of reading. Drawn by the INSERT itself, one by one: what readers may read is decided by it.
  seq          bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) NOT NULL,
  id           uuid NOT NULL,
  topic        text NOT NULL,
  key          text,
  payload      bytea NOT NULL,
  headers      jsonb NOT NULL DEFAULT '{}',
  created_at   timestamptz NOT NULL DEFAULT now(),
  state        smallint NOT NULL DEFAULT 0,       -- 0 due when it is committed, 1 due at available_at
  available_at timestamptz
) PARTITION BY RANGE (created_at);
-- Takes what no other partition takes, so that a producer never fails for want of one.
CREATE TABLE "log_default" PARTITION OF "log" DEFAULT;
CREATE INDEX "log_seq" ON "log" (seq);
COMMENT ON TABLE "log" IS 'log schema version 1';

-- One row a consumer group: which topics it wants, NULL for all, and how far it has read. Pages almost empty, so that
-- the position moves by heap-only updates.
CREATE TABLE "log_groups" (
  name     text NOT NULL,
  topics   text[],
  position bigint NOT NULL,
  -- Where the group is fed from the WAL, and NULL where it is not: its replication slot, and the log's entry in the publication that it
  -- delivers; numbers above fed_above, up to fed_upto while the feed ends. All that was committed before fed_lsn is leased or passed over,
  -- and fed_count rows of the commit there. So is what is visible in fed_snapshot: statistics go by it while a transaction that stays
  -- open holds position.
  slot         text,
  published    oid,
  fed_above    bigint,
  fed_upto     bigint,
  fed_lsn      pg_lsn,
  fed_count    bigint,
  fed_snapshot pg_snapshot,
  CONSTRAINT "log_groups_pkey" PRIMARY KEY (name)
) WITH (fillfactor = 10);

-- One row a claim that is not settled yet: from_seq is below its first message and to_seq is its last one. Of the n messages
-- with a topic among topics, done says by their place which ones are settled; NULL is none. Where not all numbers between
-- belong to it, runs has the ends of those that do, in pairs like from_seq and to_seq.
CREATE TABLE "log_ranges" (
  token        uuid NOT NULL,
  group_name   text NOT NULL,
  from_seq     bigint NOT NULL,
  to_seq       bigint NOT NULL,
  runs         bigint[],
  topics       text[],
  n            integer NOT NULL,
  done         bit varying,
  leased_until timestamptz NOT NULL,
  CONSTRAINT "log_ranges_pkey" PRIMARY KEY (token)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- The wake-up, as that of an outbox table: notify only while a dispatcher sleeps. The tables of the groups name the log as
-- their argument, so that one sleeper hears of both.
CREATE OR REPLACE FUNCTION "log_notify"() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  log  constant bigint := coalesce(pg_catalog.to_regclass(TG_ARGV[0])::oid, TG_RELID);
  hint constant text := CASE WHEN pg_catalog.pg_try_advisory_lock_shared(8031453474740764672 + 2 * log)
                        THEN pg_catalog.pg_advisory_unlock_shared(8031453474740764672 + 2 * log)::text
                        ELSE pg_catalog.pg_notify('outbox_' || log, '')::text END;
BEGIN
  RETURN NULL;
END $$;
CREATE TRIGGER "log_notify" AFTER INSERT ON "log"
  FOR EACH STATEMENT EXECUTE FUNCTION "log_notify"();
