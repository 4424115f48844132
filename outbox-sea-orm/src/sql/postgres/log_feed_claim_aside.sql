-- log_feed_claim with rows that go to the group's own table; it tells dispatchers of them.
-- $14 numbers that go to the group's own table.
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
   WHERE $13 > 0),
put_aside AS (
  INSERT INTO "log_group" (id, topic, key, payload, headers, created_at, state, available_at)
  SELECT l.id, l.topic, l.key, l.payload, l.headers, l.created_at, l.state, l.available_at
    FROM moved
   CROSS JOIN LATERAL (SELECT * FROM "log" WHERE seq = ANY ($14::bigint[])) AS l
   ORDER BY l.seq
  ON CONFLICT DO NOTHING)
SELECT EXISTS (SELECT FROM moved), (SELECT min(place) FROM unseen)
