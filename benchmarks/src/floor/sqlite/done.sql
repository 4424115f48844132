-- ?1 seqs as a JSON array, ?2 token. FROZEN.
DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?1)) AND state = 0 AND lease = ?2
