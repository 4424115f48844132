  -- For an ordered table: the rows of a key by their number, place being 0 where there is a key; those without by their place.
  KEY `outbox_keys` (state, `key`, place, seq),
