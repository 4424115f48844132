-- $1 ids, $2 tokens of ranges. Where messages are that were leased with a range and now have leases of their own.
SELECT id, lease, seq FROM "log_group" WHERE id = ANY ($1::uuid[]) AND lease = ANY ($2::uuid[]) AND state = 0
