-- $1 group. The name of its slot, which no other group of the cluster has. Until the transaction ends nobody else makes or drops it.
SELECT left(format('outbox_%s_%s_%s', d.oid, '"log_group"'::regclass::oid, $1::text), 63),
       pg_advisory_xact_lock(hashtextextended('outbox_feed', '"log_group"'::regclass::oid::bigint))::text
  FROM pg_database AS d
 WHERE d.datname = current_database()
