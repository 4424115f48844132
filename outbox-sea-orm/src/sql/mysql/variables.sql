-- What the doctor looks at. Which of the two names the isolation level has depends on the server.
SHOW SESSION VARIABLES WHERE Variable_name IN
  ('autocommit', 'binlog_format', 'innodb_flush_log_at_trx_commit', 'log_bin', 'max_allowed_packet', 'sync_binlog', 'transaction_isolation', 'tx_isolation')
