-- The journal, the busy time-out in milliseconds, how commits reach the disk (0 not at all), and whether there is a file.
SELECT (SELECT journal_mode FROM pragma_journal_mode), (SELECT timeout FROM pragma_busy_timeout),
       (SELECT synchronous FROM pragma_synchronous), coalesce((SELECT file <> '' FROM pragma_database_list WHERE name = 'main'), 0)
