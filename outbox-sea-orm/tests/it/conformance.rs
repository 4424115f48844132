//! The whole suite on both databases.

mod postgres {
    use crate::harness::Postgres;

    outbox_testkit::conformance!(Postgres: repository, operations, processed, inspect);

    #[test]
    fn random_sequences_agree_with_the_reference() {
        outbox_testkit::model::<Postgres>(16, 50);
    }
}

mod sqlite {
    use crate::harness::Sqlite;

    outbox_testkit::conformance!(Sqlite: repository, operations, processed, inspect);

    #[test]
    fn random_sequences_agree_with_the_reference() {
        outbox_testkit::model::<Sqlite>(16, 50);
    }
}
