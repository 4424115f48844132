-- $1 age in microseconds, $2 limit. Deletes from the default partition what is older and what every group has read and settled,
-- or handed on to its own table. Beginning with the lowest numbers. Index: that of the default partition on seq.
DELETE FROM "log_default"
 WHERE ctid = ANY (ARRAY(
       SELECT ctid FROM "log_default"
        WHERE created_at < clock_timestamp() - $1::bigint * interval '1 microsecond'
          AND seq <= coalesce((SELECT least((SELECT min(position) FROM "log_groups"), (SELECT min(from_seq) FROM "log_ranges"))),
                              9223372036854775807)
        ORDER BY seq
        LIMIT $2))
