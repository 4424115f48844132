-- Least privilege for the tables of schema.sql, on PostgreSQL 13 and newer: roles to grant to the users that your
-- processes log in as. Run it once, as the owner of the tables; where you renamed a table, rename it here wherever its
-- name stands in double quotes. `migrate()` is for the owner; where there is nothing to do, any role may call it.

CREATE ROLE outbox_producer NOLOGIN;    -- enqueues
CREATE ROLE outbox_dispatcher NOLOGIN;  -- claims, settles, listens
CREATE ROLE outbox_consumer NOLOGIN;    -- marks messages as processed
CREATE ROLE outbox_admin NOLOGIN;       -- statistics, dead letters, redrive, discard; purges the inbox

-- The schema that the tables are in.
GRANT USAGE ON SCHEMA "public" TO outbox_producer, outbox_dispatcher, outbox_consumer, outbox_admin;

-- A producer writes what a draft has and reads nothing: it can neither forge an attempt or a number nor see a message.
-- The number comes from an identity column, which needs no grant; the trigger's function needs none either.
GRANT INSERT (id, topic, key, payload, headers, state, available_at) ON "outbox" TO outbox_producer;

-- A message with a deduplication key. Without the second line, a repeat is AlreadyEnqueued and not answered with the first id,
-- and a key is taken until it is pruned, however long ago it has expired. The second line lets a producer see which keys there are and
-- hand them to other messages.
GRANT INSERT (dedup_key, id, expires_at) ON "outbox_dedup" TO outbox_producer;
-- GRANT SELECT, UPDATE (id, expires_at) ON "outbox_dedup" TO outbox_producer;

-- Rows that are pruned are locked, which takes an UPDATE of some column.
GRANT SELECT, DELETE, UPDATE (expires_at) ON "outbox_dedup" TO outbox_admin;

-- A dispatcher adds nothing. The sequence: what waited for a time draws a new number when it is due.
GRANT SELECT, UPDATE, DELETE ON "outbox" TO outbox_dispatcher, outbox_admin;
GRANT USAGE ON SEQUENCE "outbox_seq_seq" TO outbox_dispatcher, outbox_admin;

-- A consumer changes nothing but the result, and forgets nothing. To purge, rows are locked, which takes an UPDATE of
-- some column.
GRANT SELECT, INSERT, UPDATE (result) ON "inbox" TO outbox_consumer;
GRANT SELECT, DELETE, UPDATE (processed_at) ON "inbox" TO outbox_admin;

-- A log, where there is one: take away the dashes before GRANT, and repeat the last two for the table of each group. A dispatcher may not add to
-- the log, a producer may read neither it nor a group; making, registering and maintain() are for the owner.
-- GRANT INSERT (id, topic, key, payload, headers, state, available_at) ON "log" TO outbox_producer;
-- GRANT SELECT ON "log" TO outbox_dispatcher, outbox_admin;
-- GRANT SELECT, UPDATE (position) ON "log_groups" TO outbox_dispatcher, outbox_admin;
-- Of a group that is fed from the WAL, too; the login that reads the slot needs the attribute REPLICATION (ALTER ROLE), and no other right.
-- GRANT UPDATE (slot, published, fed_above, fed_upto, fed_lsn, fed_count, fed_snapshot) ON "log_groups" TO outbox_dispatcher, outbox_admin;
-- GRANT SELECT, INSERT, UPDATE, DELETE ON "log_ranges" TO outbox_dispatcher, outbox_admin;
-- GRANT USAGE ON SEQUENCE "log_seq_seq" TO outbox_dispatcher, outbox_admin;
-- GRANT SELECT, INSERT, UPDATE, DELETE ON "log_group_billing" TO outbox_dispatcher, outbox_admin;
-- GRANT USAGE ON SEQUENCE "log_group_billing_seq_seq" TO outbox_dispatcher, outbox_admin;
