//! The whole suite on every database.

mod postgres {
    use crate::harness::Postgres;

    outbox_testkit::conformance!(Postgres: repository, operations, ordered, processed, inspect);

    #[test]
    fn random_sequences_agree_with_the_reference() {
        outbox_testkit::model::<Postgres>(16, 50);
    }
}

mod mysql {
    use crate::harness::MySql;

    outbox_testkit::conformance!(MySql: repository, inspect, operations, processed);

    #[test]
    fn random_sequences_agree_with_the_reference() {
        outbox_testkit::model::<MySql>(16, 50);
    }
}

/// What holds for every table holds for an ordered one.
mod postgres_ordered {
    use crate::harness::OrderedPostgres;

    outbox_testkit::conformance!(OrderedPostgres: repository, operations);
}

mod sqlite_ordered {
    use crate::harness::OrderedSqlite;

    outbox_testkit::conformance!(OrderedSqlite: repository, operations);
}

mod sqlite {
    use crate::harness::Sqlite;

    outbox_testkit::conformance!(Sqlite: repository, operations, ordered, processed, inspect);

    #[test]
    fn random_sequences_agree_with_the_reference() {
        outbox_testkit::model::<Sqlite>(16, 50);
    }
}
