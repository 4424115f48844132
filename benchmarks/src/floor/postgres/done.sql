-- $1 seqs, $2 token. FROZEN.
DELETE FROM floor.outbox WHERE seq = ANY($1) AND state = 0 AND lease = $2
