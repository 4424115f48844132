-- $1 number handed out last when nobody wrote any more, $2 how many microseconds ago the first message is to have been
-- enqueued, NULL to begin with what is enqueued from now on. The position to begin behind.
SELECT coalesce((SELECT min(seq) - 1 FROM "log"
                  WHERE $2::bigint IS NOT NULL AND seq <= $1 AND created_at >= clock_timestamp() - $2::bigint * interval '1 microsecond'), $1)
