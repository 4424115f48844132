-- The columns of the PostgreSQL floor; claims walk the primary key. FROZEN.
CREATE TABLE outbox (
  seq          BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  id           BINARY(16) NOT NULL UNIQUE,
  topic        VARCHAR(255) NOT NULL,
  `key`        VARCHAR(255),
  payload      LONGBLOB NOT NULL,
  headers      TEXT NOT NULL,
  created_at   DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  state        TINYINT NOT NULL DEFAULT 0,
  available_at DATETIME(6),
  leased_until DATETIME(6) NOT NULL DEFAULT '1970-01-01',
  lease        BINARY(16),
  attempts     INT NOT NULL DEFAULT 0,
  last_error   TEXT
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4
