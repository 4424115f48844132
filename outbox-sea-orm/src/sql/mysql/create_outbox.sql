-- The outbox table. Version 1. The collations compare byte by byte, without padding: /*!…*/ is read by MySQL, /*M!…*/
-- by MariaDB. place and due are nanoseconds since 1970, UTC, by the server's clock.

-- First, which message was the first with a deduplication key, and until when a repeat is answered with it: the table that
-- has the version comes last, so that whoever finds it finds both. A table that is dropped by hand leaves this one behind.
CREATE TABLE IF NOT EXISTS `outbox_dedup` (
  dedup_key  VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80017 utf8mb4_0900_bin */ /*M!100600 utf8mb4_nopad_bin */ NOT NULL,
  id         BINARY(16) NOT NULL,
  expires_at DATETIME(6) NOT NULL,
  PRIMARY KEY (dedup_key),
  -- for pruning
  KEY `outbox_dedup_expiry` (expires_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4 ROW_FORMAT = DYNAMIC;

CREATE TABLE `outbox` (
  seq        BIGINT NOT NULL AUTO_INCREMENT,
  id         BINARY(16) NOT NULL,
  topic      VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80017 utf8mb4_0900_bin */ /*M!100600 utf8mb4_nopad_bin */ NOT NULL,
  `key`      VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80017 utf8mb4_0900_bin */ /*M!100600 utf8mb4_nopad_bin */,
  payload    LONGBLOB NOT NULL,
  headers    TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  created_at DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  state      TINYINT NOT NULL DEFAULT 0,          -- 0 ready, 1 parked until due, 2 dead, 3 done and kept, 4 claimed until due
  -- Claim order: when the row last became claimable. A number cannot be drawn for a stored row. 0 for a row with a key in an
  -- ordered table, where its number says the order.
  place      BIGINT NOT NULL,
  -- What rows of a state are looked for by: ready its place, parked and claimed the end of that, dead its seq, done when.
  due        BIGINT NOT NULL,
  due_since  BIGINT NOT NULL,                     -- from when it counts as due, whenever it is made ready
  lease      BINARY(16),
  attempts   INT NOT NULL DEFAULT 0,
  fence      BIGINT NOT NULL DEFAULT 0,
  last_error TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
  dead_at    DATETIME(6),
  history    TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,   -- of failed attempts, the last ten: attempt, at, error
  PRIMARY KEY (seq),
  UNIQUE KEY `outbox_id` (id),
  -- The only index that a claim writes. With the topic in it, claims pass over other topics without reading rows.
  KEY `outbox_agenda` (state, due, topic),
  CONSTRAINT `outbox_state` CHECK (state IN (0, 1, 2, 3, 4) AND (state = 4) = (lease IS NOT NULL) AND attempts >= 0)
) ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4 ROW_FORMAT = DYNAMIC COMMENT = 'outbox schema version 1';
