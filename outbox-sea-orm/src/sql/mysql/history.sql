-- Parameter: id.
SELECT history FROM `outbox` WHERE id = ?
