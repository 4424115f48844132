-- ?1 topics as a JSON array or NULL. What a claim needs to know before it writes, in one read: whether a ready row is
-- there, whether parked rows are due, how many leases have expired, and in how many milliseconds the next parked
-- row is due or the next lease expires.
SELECT EXISTS (SELECT 1 FROM "outbox" WHERE state = 0 AND lease IS NULL
                  AND (?1 IS NULL OR topic IN (SELECT value FROM json_each(?1)))),
       EXISTS (SELECT 1 FROM "outbox" WHERE state = 1 AND available_at <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
       EXISTS (SELECT 1 FROM "outbox" WHERE state = 0 AND lease IS NOT NULL AND leased_until <= CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
                  AND (?1 IS NULL OR topic IN (SELECT value FROM json_each(?1)))),
       min((SELECT coalesce(min(available_at), 9000000000000000000) FROM "outbox" WHERE state = 1 AND available_at > CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
           (SELECT coalesce(min(leased_until), 9000000000000000000) FROM "outbox" WHERE state = 0 AND lease IS NOT NULL AND leased_until > CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)))
         - CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)
