//! The whole suite on every database.

mod postgres {
    use outbox_core::{Declaration, Fairness, OnDead};

    use crate::harness::Postgres;

    outbox_testkit::conformance!(Postgres: repository, operations, fair, ordered, processed, inspect);

    #[test]
    fn random_sequences_agree_with_the_reference() {
        outbox_testkit::model::<Postgres>(16, 50);
    }

    #[test]
    fn random_sequences_on_ordered_tables_agree_with_the_reference() {
        for on_dead in [OnDead::Continue, OnDead::Block] {
            outbox_testkit::model_declared::<Postgres>(&Declaration::new().ordered(on_dead), 12, 50);
        }
    }

    #[test]
    fn random_sequences_on_fair_tables_agree_with_the_reference() {
        outbox_testkit::model_declared::<Postgres>(&Declaration::new().fair(Fairness::Key), 12, 50);
    }
}

mod mysql {
    use outbox_core::{Declaration, Fairness, OnDead};

    use crate::harness::MySql;

    outbox_testkit::conformance!(MySql: repository, operations, fair, ordered, processed, inspect);

    #[test]
    fn random_sequences_agree_with_the_reference() {
        outbox_testkit::model::<MySql>(16, 50);
    }

    #[test]
    fn random_sequences_on_ordered_tables_agree_with_the_reference() {
        for on_dead in [OnDead::Continue, OnDead::Block] {
            outbox_testkit::model_declared::<MySql>(&Declaration::new().ordered(on_dead), 12, 50);
        }
    }

    #[test]
    fn random_sequences_on_fair_tables_agree_with_the_reference() {
        outbox_testkit::model_declared::<MySql>(&Declaration::new().fair(Fairness::Key), 12, 50);
    }
}

mod postgres_partitioned {
    use crate::harness::PartitionedPostgres;

    outbox_testkit::conformance!(PartitionedPostgres: repository, operations, ordered, inspect);

    #[test]
    fn random_sequences_agree_with_the_reference() {
        outbox_testkit::model::<PartitionedPostgres>(16, 50);
    }
}

/// What holds for every table holds for an ordered one.
mod postgres_ordered {
    use crate::harness::OrderedPostgres;

    outbox_testkit::conformance!(OrderedPostgres: repository, operations);
}

mod mysql_ordered {
    use crate::harness::OrderedMySql;

    outbox_testkit::conformance!(OrderedMySql: repository, operations);
}

mod sqlite_ordered {
    use crate::harness::OrderedSqlite;

    outbox_testkit::conformance!(OrderedSqlite: repository, operations);
}

/// And for a fair one.
mod postgres_fair {
    use crate::harness::FairPostgres;

    outbox_testkit::conformance!(FairPostgres: repository, operations);
}

mod mysql_fair {
    use crate::harness::FairMySql;

    outbox_testkit::conformance!(FairMySql: repository, operations);
}

mod sqlite_fair {
    use crate::harness::FairSqlite;

    outbox_testkit::conformance!(FairSqlite: repository, operations);
}

mod sqlite {
    use outbox_core::{Declaration, Fairness, OnDead};

    use crate::harness::Sqlite;

    outbox_testkit::conformance!(Sqlite: repository, operations, fair, ordered, processed, inspect);

    #[test]
    fn random_sequences_agree_with_the_reference() {
        outbox_testkit::model::<Sqlite>(16, 50);
    }

    #[test]
    fn random_sequences_on_ordered_tables_agree_with_the_reference() {
        for on_dead in [OnDead::Continue, OnDead::Block] {
            outbox_testkit::model_declared::<Sqlite>(&Declaration::new().ordered(on_dead), 12, 50);
        }
    }

    #[test]
    fn random_sequences_on_fair_tables_agree_with_the_reference() {
        outbox_testkit::model_declared::<Sqlite>(&Declaration::new().fair(Fairness::Key), 12, 50);
    }
}
