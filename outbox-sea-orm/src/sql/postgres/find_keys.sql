-- $1 keys. The messages of those that are honoured.
SELECT dedup_key, id
  FROM "outbox_dedup"
 WHERE dedup_key = ANY ($1::text[]) AND expires_at > clock_timestamp()
