-- FROZEN.
INSERT INTO floor_log.log (id, topic, key, payload, headers)
SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::jsonb[])
