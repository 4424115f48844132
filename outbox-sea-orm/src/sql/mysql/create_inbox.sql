-- The inbox table: which message a consumer group has processed. Version 1.
CREATE TABLE `inbox` (
  group_name   VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80017 utf8mb4_0900_bin */ /*M!100600 utf8mb4_nopad_bin */ NOT NULL,
  message_id   BINARY(16) NOT NULL,
  fingerprint  VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
  metadata     MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  result       MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
  processed_at DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (group_name, message_id),
  KEY `inbox_processed_at` (group_name, processed_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4 ROW_FORMAT = DYNAMIC COMMENT = 'inbox schema version 1';
