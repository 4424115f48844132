//! outbox-testkit
