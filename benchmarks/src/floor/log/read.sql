-- $1 position, $2 horizon, $3 limit. FROZEN.
SELECT seq, id, topic, key, payload, headers, created_at, 1 FROM floor_log.log WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3
