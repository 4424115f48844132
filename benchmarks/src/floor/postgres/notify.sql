-- The plain wake-up: one notification a statement. Only the latency floor has it. FROZEN.
CREATE FUNCTION floor.wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('floor', '');
  RETURN NULL;
END $$;
CREATE TRIGGER wake AFTER INSERT ON floor.outbox FOR EACH STATEMENT EXECUTE FUNCTION floor.wake();
