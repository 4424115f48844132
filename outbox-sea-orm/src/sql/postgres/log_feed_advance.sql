-- $1 group, $2 slot, $3 and $4 the commit and how many of its rows are behind the group, $5 and $6 the same from now on, $7 a number up
-- to which everything is behind it, or NULL, $8 a snapshot in which nothing else is visible, or NULL. What is above fed_upto was passed
-- over. Changes nothing where the group is not there any more, or nobody reads the slot: this server may have taken over from the one that
-- they were read on; or the log is not published.
UPDATE "log_groups"
   SET fed_lsn = $5::text::pg_lsn, fed_count = $6, fed_snapshot = coalesce($8::text::pg_snapshot, fed_snapshot),
       position = CASE WHEN $7::bigint IS NULL THEN position ELSE greatest(position, least($7::bigint, fed_upto)) END
 WHERE name = $1 AND slot = $2 AND fed_lsn = $3::text::pg_lsn AND fed_count = $4
   AND EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $2 AND active)
   AND EXISTS (SELECT FROM pg_publication AS p JOIN pg_publication_rel AS r ON r.prpubid = p.oid
                WHERE p.pubname = ('outbox_' || '"log"'::regclass::oid)::name AND p.pubinsert AND r.oid = published)
