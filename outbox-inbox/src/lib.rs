//! outbox-inbox
