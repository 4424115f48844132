  -- For a fair table: a lane is a key, or the first 255 characters of a header, and a topic; U+0001 tells them apart, since
  -- topics have no control characters. Stored, so that the purge of deleted index entries has nothing to compute.
  lane VARCHAR(511) CHARACTER SET utf8mb4 COLLATE /*!80017 utf8mb4_0900_bin */ /*M!100600 utf8mb4_nopad_bin */
    GENERATED ALWAYS AS (CONCAT(COALESCE(`key`, ''), CHAR(1 USING utf8mb4), topic)) STORED,
  KEY `outbox_lanes` (state, lane, place, seq),
