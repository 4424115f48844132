-- $1 group, $2 token, $3 lease in microseconds, $4 slot, $5 topics of the group or NULL, $6 up to which number or NULL, $7 and $8 the
-- commit and how many of its rows are behind the group, $9 and $10 the same after this claim, $11 the transactions of its rows,
-- $12 runs of the numbers that are leased, $13 how many.
-- Changes nothing where the group is not there any more: whoever was paused or has lost the slot takes nothing. Nothing
-- where nobody reads the slot: this server may have taken over from the one that has sent the rows, and not have them. Nothing where the
-- log is not published: from 18 on the server passes over what it would have sent. And nothing before every row is visible: the server
-- sends a transaction before it ends, and waits in between where it has synchronous standbys.
-- No row goes to the group's own table, as log_feed_claim_aside lets it: an insert of none would give a hint all the same.
-- Whether it took, and the first transaction that is not visible.
WITH unseen AS MATERIALIZED (
  SELECT x.place FROM unnest($11::bigint[]) WITH ORDINALITY AS x (xid, place)
   WHERE NOT pg_visible_in_snapshot(x.xid::text::xid8, (SELECT pg_current_snapshot()))),
moved AS (
  UPDATE "log_groups" SET fed_lsn = $9::text::pg_lsn, fed_count = $10
   WHERE name = $1 AND slot = $4 AND topics IS NOT DISTINCT FROM $5::text[] AND fed_upto IS NOT DISTINCT FROM $6
     AND fed_lsn = $7::text::pg_lsn AND fed_count = $8 AND NOT EXISTS (SELECT FROM unseen)
     AND EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $4 AND active)
     AND EXISTS (SELECT FROM pg_publication AS p JOIN pg_publication_rel AS r ON r.prpubid = p.oid
                  WHERE p.pubname = ('outbox_' || '"log"'::regclass::oid)::name AND p.pubinsert AND r.oid = published)
  RETURNING true),
leased AS (
  INSERT INTO "log_ranges" (token, group_name, from_seq, to_seq, runs, n, leased_until)
  SELECT $2::uuid, $1, ($12::bigint[])[1], ($12::bigint[])[cardinality($12::bigint[])],
         CASE WHEN cardinality($12::bigint[]) > 2 THEN $12::bigint[] END, $13, clock_timestamp() + $3::bigint * interval '1 microsecond'
    FROM moved
   WHERE $13 > 0)
SELECT EXISTS (SELECT FROM moved), (SELECT min(place) FROM unseen)
