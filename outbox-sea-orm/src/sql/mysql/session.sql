-- Whether the server refuses writes, and its clock.
SELECT @@global.read_only <> 0, UTC_TIMESTAMP(6)
