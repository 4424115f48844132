//! The whole suite on both databases.

mod postgres {
    use crate::harness::Postgres;

    outbox_testkit::conformance!(Postgres: repository, operations, processed);
}

mod sqlite {
    use crate::harness::Sqlite;

    outbox_testkit::conformance!(Sqlite: repository, operations, processed);
}
