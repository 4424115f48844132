-- What makes an outbox table that of a group: it tells the sleepers of the log.
DROP TRIGGER IF EXISTS "outbox_notify" ON "log_group";
DROP FUNCTION IF EXISTS "outbox_notify"();
CREATE TRIGGER "outbox_notify" AFTER INSERT OR UPDATE OF seq ON "log_group"
  FOR EACH STATEMENT EXECUTE FUNCTION "log_notify"('"log"');
