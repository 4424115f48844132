//! outbox-dispatcher
