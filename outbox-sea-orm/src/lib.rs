//! outbox-sea-orm
