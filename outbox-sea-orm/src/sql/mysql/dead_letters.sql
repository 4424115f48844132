-- The filter, each value twice and each may be NULL: topic, key, part of the error, least and greatest age in microseconds;
-- then number to continue behind, limit. Index: outbox_agenda, where dead rows lie by their numbers.
SELECT seq, id, topic, `key`, payload, headers, created_at, attempts, fence, COALESCE(last_error, ''),
       COALESCE(dead_at, created_at)
  FROM `outbox` FORCE INDEX (`outbox_agenda`)
 WHERE state = 2
   AND (? IS NULL OR topic = ?) AND (? IS NULL OR `key` = ?) AND (? IS NULL OR INSTR(last_error, ?) > 0)
   AND (? IS NULL OR dead_at <= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND)
   AND (? IS NULL OR dead_at >= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND)
   AND due > ?
 ORDER BY due
 LIMIT ?
