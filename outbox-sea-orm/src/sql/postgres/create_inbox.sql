-- The inbox table: which message a consumer group has processed. Version 1.
CREATE TABLE "inbox" (
  group_name   text NOT NULL,
  message_id   uuid NOT NULL,
  fingerprint  text,
  metadata     jsonb NOT NULL DEFAULT '{}',
  result       jsonb,
  processed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT "inbox_pkey" PRIMARY KEY (group_name, message_id),
  CONSTRAINT "inbox_times" CHECK (processed_at BETWEEN '1970-01-01Z' AND '9999-12-31Z')
);
CREATE INDEX "inbox_processed_at" ON "inbox" (group_name, processed_at);
COMMENT ON TABLE "inbox" IS 'inbox schema version 1';
