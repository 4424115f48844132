-- What the slots of a log deliver: its rows, under its own name whatever their partition. Safe to run again.
DO $$
BEGIN
  EXECUTE format('CREATE PUBLICATION %I FOR TABLE "log" WITH (publish = ''insert'', publish_via_partition_root = true)',
                 'outbox_' || '"log"'::regclass::oid);
EXCEPTION WHEN duplicate_object OR unique_violation THEN
  NULL;
END $$
