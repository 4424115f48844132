-- One prepared statement for every batch size. FROZEN.
INSERT INTO floor.outbox (id, topic, key, payload, headers)
SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::jsonb[])
