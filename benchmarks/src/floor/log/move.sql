-- $1 position. FROZEN.
UPDATE floor_log.cursor SET position = $1 WHERE name = 'group'
