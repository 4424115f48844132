-- A name of this session, as log_horizon gives it.
SELECT set_config('outbox.session', coalesce(nullif(current_setting('outbox.session', true), ''), gen_random_uuid()::text), false)
