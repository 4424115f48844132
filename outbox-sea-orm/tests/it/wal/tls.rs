//! A feed over TLS. The pool of these tests has none, so the role that reads the WAL is another one.

use std::path::{Path, PathBuf};
use std::process::Command;

use outbox_core::{Error, ErrorKind};
use outbox_sea_orm::{LogGroup, WalFeed};
use outbox_testkit::server::{Server, Settings, required};
use outbox_testkit::{Harness, Skip};

use super::{Fed, deliver, eventually, on, on_own_server};

const PASSWORD: &str = "not-in-any-error";

/// A root certificate, one that has signed nothing, and what the server has, in one folder.
struct Certificates(tempfile::TempDir);

impl Certificates {
    /// `None` where there is no `openssl`.
    fn make() -> Option<Self> {
        let made = Self(tempfile::tempdir().expect("a folder"));
        let of = |name: &str, end: &str| {
            format!(
                "[req]\ndistinguished_name=dn\nx509_extensions=v3\nprompt=no\n[dn]\nCN={name}\n[v3]\n{end}\n"
            )
        };
        std::fs::write(made.path("root.cnf"), of("outbox", "basicConstraints=critical,CA:TRUE"))
            .expect("write");
        std::fs::write(made.path("server.cnf"), of("localhost", "subjectAltName=DNS:localhost"))
            .expect("write");
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        for root in ["root", "other"] {
            made.openssl(&format!("req -x509 {key} -config root.cnf -keyout {root}.key -out {root}.pem"))?;
        }
        made.openssl(&format!("req {key} -config server.cnf -keyout server.key -out server.csr"))?;
        made.openssl("x509 -req -in server.csr -CA root.pem -CAkey root.key -CAcreateserial -days 2 -extfile server.cnf -extensions v3 -out server.pem")?;
        Some(made)
    }

    fn openssl(&self, arguments: &str) -> Option<()> {
        let mut openssl = Command::new("openssl");
        let output = openssl.args(arguments.split(' ')).current_dir(self.0.path()).output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(())
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::join(self.0.path(), name)
    }
}

/// A server that takes the role `feeder` over TLS only.
struct Secured {
    certificates: Certificates,
    fed: Fed,
    _server: Server,
}

impl Secured {
    async fn start(test: &str) -> Option<Self> {
        let Some(certificates) = Certificates::make() else {
            assert!(!required("local"), "there is no openssl");
            Skip::new("there is no openssl").report(Fed::NAME, test);
            return None;
        };
        let (server, fed) = on_own_server(test, Settings::for_tests()).await?;
        let secured = Self { certificates, fed, _server: server };
        secured.switch_on().await;
        Some(secured)
    }

    async fn switch_on(&self) {
        for name in ["server.pem", "server.key"] {
            self.put(name, &std::fs::read_to_string(self.certificates.path(name)).expect("read")).await;
        }
        let rules = "hostssl all feeder all password\nhost all feeder all reject\nhost all all all password";
        self.put("pg_hba.conf", rules).await;
        for sql in [
            &format!("CREATE ROLE feeder LOGIN REPLICATION PASSWORD '{PASSWORD}'"),
            "ALTER SYSTEM SET ssl_cert_file = 'server.pem'",
            "ALTER SYSTEM SET ssl_key_file = 'server.key'",
            "ALTER SYSTEM SET ssl = on",
            "SELECT pg_reload_conf()",
        ] {
            self.fed.execute(sql).await;
        }
        eventually("the server has TLS", async || {
            let started = self.start_feed(self.feed("root.pem")).await;
            started.inspect_err(|error| println!("not yet: {error}")).ok()
        })
        .await;
    }

    /// Writes a file into the server's folder.
    async fn put(&self, name: &str, text: &str) {
        let lines = format!("SELECT unnest(string_to_array('{}', E'\\n'))", text.trim_end());
        self.fed.execute(&format!("COPY ({lines}) TO PROGRAM 'umask 077; cat >{name}'")).await;
    }

    fn feed(&self, root: &str) -> WalFeed {
        self.plain_feed().with_root_certificate(self.certificates.path(root)).with_server_name("localhost")
    }

    fn plain_feed(&self) -> WalFeed {
        WalFeed::new().with_login("feeder", PASSWORD)
    }

    fn group(&self, feed: WalFeed) -> LogGroup {
        self.fed.log.group("billing").expect("name").with_feed(feed)
    }

    async fn start_feed(&self, feed: WalFeed) -> Result<(), Error> {
        self.group(feed).start_feed().await
    }

    /// That of a feed of a group that was read by number.
    async fn refusal(&self, feed: WalFeed) -> Error {
        let error = self.start_feed(feed).await.expect_err("refused");
        assert!(!format!("{error} {error:?}").contains(PASSWORD), "{error}");
        error
    }

    async fn assert_encrypted(&self) {
        let sql = "SELECT s.ssl FROM pg_stat_ssl AS s JOIN pg_stat_replication AS r ON r.pid = s.pid WHERE r.usename = 'feeder'";
        assert!(self.fed.value::<bool>(sql).await);
    }

    /// Delivers over a feed of this kind.
    async fn deliver(&self, feed: WalFeed) {
        let group = self.group(feed);
        let ids = self.fed.enqueue((0..10).map(|_| on("a"))).await;
        assert_eq!(deliver(&group, 10).await, ids);
        self.assert_encrypted().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn feed_is_read_over_tls() {
    let Some(secured) = Secured::start("tls::feed_is_read_over_tls").await else { return };
    secured.deliver(secured.feed("root.pem")).await;
    // the pool's sslmode is prefer
    secured.deliver(secured.plain_feed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_is_not_trusted_is_refused() {
    let Some(secured) = Secured::start("tls::server_that_is_not_trusted_is_refused").await else { return };
    secured.group(WalFeed::new()).resync().await.expect("read by number");
    let error = secured.refusal(secured.feed("other.pem")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    let error = secured.refusal(secured.feed("root.pem").with_server_name("elsewhere")).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    let error = secured.refusal(secured.feed("missing.pem")).await;
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    secured.fed.execute("ALTER SYSTEM SET ssl = off").await;
    secured.fed.execute("SELECT pg_reload_conf()").await;
    let error = eventually("the server has no TLS", async || {
        let error = secured.start_feed(secured.feed("other.pem")).await.expect_err("refused");
        (error.kind() == ErrorKind::Unsupported).then_some(error)
    })
    .await;
    assert!(error.to_string().contains("TLS"), "{error}");
    let error = secured.refusal(secured.plain_feed()).await;
    assert_eq!(
        error.kind(),
        ErrorKind::PermissionDenied,
        "the server takes this role over TLS only: {error}"
    );
}
