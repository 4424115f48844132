-- $1 schema, $2 table: the key of the guard and the name of the channel, as the trigger computes them.
SELECT guard, 'outbox_' || to_hex(guard) FROM (SELECT hashtextextended('outbox ' || $1::text || '.' || $2::text, 0) AS guard) AS k
