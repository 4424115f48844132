-- Whether this role may read keys and take those that have expired.
SELECT has_table_privilege('"outbox_dedup"', 'SELECT') AND has_any_column_privilege('"outbox_dedup"', 'UPDATE')
