-- The table of a group of an ordered log: messages keep their number in the log. What draws one here, a dead letter that is redriven,
-- comes after all of those.
ALTER TABLE "log_group" ALTER COLUMN seq RESTART WITH 2305843009213693952;
