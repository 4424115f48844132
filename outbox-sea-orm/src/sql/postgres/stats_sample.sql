-- Answers as stats, projected from the rows on about 200 pages of the table, whatever its size.
WITH size AS MATERIALIZED (
  SELECT coalesce((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree('"outbox"'::regclass) WHERE isleaf), pg_relation_size('"outbox"'::regclass)) AS bytes)
SELECT state, topic, round(count(*) * max(scale))::bigint, round(count(*) FILTER (WHERE is_due) * max(scale))::bigint,
       round(count(*) FILTER (WHERE state = 0 AND NOT is_due) * max(scale))::bigint,
       round(count(*) FILTER (WHERE state = 1 AND attempts > 0 AND NOT is_due) * max(scale))::bigint,
       (extract(epoch FROM clock_timestamp() - min(least(greatest(due_at, '1970-01-01Z'), '9999-12-31Z')) FILTER (WHERE is_due)) * 1000000)::bigint, max(attempts)
  FROM (SELECT state, topic, attempts,
               CASE WHEN state = 1 THEN available_at WHEN lease IS NULL THEN coalesce(available_at, created_at) ELSE leased_until END AS due_at,
               CASE state WHEN 0 THEN lease IS NULL OR leased_until <= clock_timestamp()
                          WHEN 1 THEN available_at <= clock_timestamp() ELSE false END AS is_due,
               greatest(1, (SELECT bytes FROM size) / (200 * current_setting('block_size')::numeric)) AS scale
          FROM "outbox" TABLESAMPLE SYSTEM ((SELECT least(100, 20000 * current_setting('block_size')::float8 / greatest(1, bytes)) FROM size))) AS m
 GROUP BY state, topic
