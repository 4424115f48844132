
-- Rows apart by what became of them. Waiting and claimed ones, alone with the unique id and with room on their pages, stay
-- small whatever is kept.
CREATE TABLE "outbox_pending" PARTITION OF "outbox" (CONSTRAINT "outbox_pkey" PRIMARY KEY (id)) FOR VALUES IN (0, 1) WITH (
  fillfactor = 45,
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0
);
CREATE TABLE "outbox_dead_all" PARTITION OF "outbox" FOR VALUES IN (2);
CREATE INDEX "outbox_dead_id" ON "outbox_dead_all" (id);
-- Delivered ones by time: maintenance makes partitions ahead and drops old ones. What fits into none goes to the rest, so that
-- a late run breaks no settlement.
CREATE TABLE "outbox_done_all" PARTITION OF "outbox" FOR VALUES IN (3) PARTITION BY RANGE (done_at);
CREATE TABLE "outbox_done_rest" PARTITION OF "outbox_done_all" DEFAULT;
-- For the history of a message. Most have none, so it costs nearly nothing.
CREATE INDEX "outbox_failed" ON "outbox_done_all" (id) WHERE history IS NOT NULL;
