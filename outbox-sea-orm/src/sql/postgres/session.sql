-- The isolation level by default, whether nothing can be written, the clock, and whether this role sees what other
-- roles' sessions do.
SELECT current_setting('default_transaction_isolation'),
       pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean,
       clock_timestamp(),
       pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
