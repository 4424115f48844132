SELECT CAST(@@max_allowed_packet AS SIGNED)
