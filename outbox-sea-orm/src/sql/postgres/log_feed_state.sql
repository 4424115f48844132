-- $1 group. Its slot, how far it has read, its topics, what the slot delivers, how far that has got, and a transaction number that is
-- not in use yet; then whether somebody reads the slot, why it cannot be read, NULL where it can, the publication, and whether this is a
-- standby, where nobody claims. What was confirmed to a slot and is not behind the group would never come: the slot is another one, or
-- further on than this database.
SELECT g.slot, g.position, g.topics, g.fed_above, g.fed_upto, g.fed_lsn::text, g.fed_count,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint, coalesce(s.active, false),
       CASE WHEN g.slot IS NULL THEN NULL
            WHEN s.slot_name IS NULL THEN 'is missing'
            WHEN s.wal_status = 'lost' THEN 'was invalidated: the server has removed WAL that it needs'
            WHEN s.database <> current_database() THEN 'is of another database'
            WHEN s.plugin <> 'pgoutput' THEN 'has another plugin than pgoutput'
            WHEN NOT EXISTS (SELECT FROM pg_publication AS p JOIN pg_publication_rel AS r ON r.prpubid = p.oid
                              WHERE p.pubname = ('outbox_' || '"log"'::regclass::oid)::name AND p.pubinsert AND r.oid = g.published)
            THEN 'has no publication ' || quote_ident('outbox_' || '"log"'::regclass::oid) || ' with the log, or one that was made again'
            WHEN s.confirmed_flush_lsn > g.fed_lsn THEN 'is further on than the group' END,
       'outbox_' || '"log"'::regclass::oid, pg_is_in_recovery()
  FROM "log_groups" AS g
  LEFT JOIN pg_replication_slots AS s ON s.slot_name = g.slot
 WHERE g.name = $1
