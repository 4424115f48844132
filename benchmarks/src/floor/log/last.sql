-- The highest number handed out. FROZEN.
SELECT coalesce(pg_sequence_last_value('floor_log.log_seq_seq'), 0)
