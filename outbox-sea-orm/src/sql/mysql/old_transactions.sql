-- Parameter: age in microseconds. Which transactions are older, for how many seconds, whether they have written, and how many
-- transactions wait to be purged. trx_started goes by the time zone of the host, whatever that of the session.
-- /*!…*/ is read by MySQL, whose information_schema.PROCESSLIST fails while a statement has a token among its parameters.
SELECT CONCAT('session ', t.trx_mysql_thread_id, COALESCE(CONCAT(' of ', p.USER, ' (', COALESCE(p.DB, 'no database'), ')'), '')),
       CAST(TIMESTAMPDIFF(SECOND, t.trx_started, CONVERT_TZ(UTC_TIMESTAMP(6), '+00:00', 'SYSTEM')) AS SIGNED),
       t.trx_rows_modified > 0,
       CAST(COALESCE((SELECT COUNT FROM information_schema.INNODB_METRICS WHERE NAME = 'trx_rseg_history_len'), 0) AS SIGNED)
  FROM information_schema.INNODB_TRX AS t
  LEFT JOIN /*!80022 performance_schema.processlist */ /*M!100600 information_schema.PROCESSLIST */ AS p ON p.ID = t.trx_mysql_thread_id
 WHERE t.trx_mysql_thread_id <> CONNECTION_ID()
   AND t.trx_started < CONVERT_TZ(UTC_TIMESTAMP(6), '+00:00', 'SYSTEM') - INTERVAL ? MICROSECOND
