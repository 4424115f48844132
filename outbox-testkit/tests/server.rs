//! The test servers themselves: each test is skipped where the machine has nothing to start one from.

use std::{
    io::Read,
    net::TcpStream,
    process::{Command, Output},
};

use outbox_testkit::server::{
    ControlError, Engine, Origin, Server, Settings, StartError, StopMode, mysql, postgres, private,
};

/// Runs one statement with psql, where that is installed.
fn psql(url: &str, statement: &str) -> Option<Output> {
    let mut command = Command::new("psql");
    command.args(["--no-psqlrc", "-Atq", "-v", "ON_ERROR_STOP=1", "-c", statement, url]);
    command.output().ok()
}

fn check(url: &str, statement: &str, expected: &str) {
    let Some(output) = psql(url, statement) else {
        return eprintln!("psql is not installed: {statement} was not checked");
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    let answer = String::from_utf8_lossy(&output.stdout);
    assert_eq!(answer.trim(), expected, "{statement}: {complaint}");
}

fn place(url: &str) -> &str {
    let (_, rest) = url.rsplit_once('@').expect("a user");
    rest.split('/').next().expect("a host")
}

fn is_listening(url: &str) -> bool {
    TcpStream::connect(place(url)).is_ok()
}

#[tokio::test]
async fn all_tests_of_a_process_share_one_server() {
    let (Ok(one), Ok(other)) = tokio::join!(postgres(), postgres()) else {
        return;
    };
    assert!(std::ptr::eq(one, other));
    check(one.url(), "SELECT current_database()", "postgres");
}

/// The whole life of a MySQL server; the ways to one and the rules are those of PostgreSQL.
#[tokio::test]
async fn mysql_can_be_stopped_and_restarted() {
    let Ok(server) = private(Settings::for_mysql_tests()).await else {
        return;
    };
    assert_eq!(server.engine(), Engine::MySql);
    for mode in [StopMode::Fast, StopMode::Immediate, StopMode::Kill] {
        server.stop(mode).await.expect("stops");
        assert!(!is_listening(server.url()), "{mode:?}");
        server.restart().await.expect("starts again");
        assert!(is_listening(server.url()));
    }
    let url = server.url().to_owned();
    drop(server);
    assert!(!is_listening(&url));
}

#[tokio::test]
async fn mysql_is_shared_too() {
    let (Ok(one), Ok(other)) = tokio::join!(mysql(), mysql()) else {
        return;
    };
    assert!(std::ptr::eq(one, other));
}

#[tokio::test]
async fn a_setting_mysql_refuses_is_named_in_the_error() {
    if private(Settings::for_mysql_tests()).await.is_err() {
        return;
    }
    let refused = Server::local(Settings::new(Engine::MySql).with("no_such_setting", "1")).await;
    let error = refused.expect_err("the server does not know it");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[test]
fn the_shared_server_outlives_the_runtime_that_started_it() {
    let ask = || tokio::runtime::Runtime::new().expect("a runtime").block_on(postgres());
    let (Ok(_), Ok(server)) = (ask(), ask()) else {
        return;
    };
    check(server.url(), "SELECT 1", "1");
}

#[tokio::test]
async fn settings_reach_a_private_server() {
    let settings = Settings::for_tests().with("work_mem", "7MB");
    let Ok(server) = private(settings).await else {
        return;
    };
    check(server.url(), "SHOW work_mem", "7MB");
    check(server.url(), "SHOW wal_level", "logical");
    check(server.url(), "SHOW max_prepared_transactions", "20");
    if server.origin() == Origin::Local {
        check(server.url(), "SHOW listen_addresses", "127.0.0.1");
    }
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let Ok(server) = private(Settings::for_tests()).await else {
        return;
    };
    let url = format!("postgres://postgres:wrong@{}/postgres", place(server.url()));
    if let Some(output) = psql(&url, "SELECT 1") {
        assert!(!output.status.success());
    }
}

#[tokio::test]
async fn every_way_of_stopping_can_be_followed_by_a_restart() {
    let Ok(server) = private(Settings::for_tests()).await else {
        return;
    };
    check(server.url(), "CREATE TABLE kept (n int)", "");
    for mode in [StopMode::Fast, StopMode::Immediate, StopMode::Kill] {
        server.stop(mode).await.expect("stops");
        assert!(!is_listening(server.url()), "{mode:?}");
        server.restart().await.expect("starts again");
        check(server.url(), "INSERT INTO kept VALUES (1) RETURNING n", "1");
    }
    server.restart().await.expect("restarts while it runs");
    check(server.url(), "SELECT count(*) FROM kept", "3");
}

#[tokio::test]
async fn dropping_a_private_server_stops_it() {
    let Ok(server) = private(Settings::for_tests()).await else {
        return;
    };
    let url = server.url().to_owned();
    assert!(is_listening(&url));
    drop(server);
    assert!(!is_listening(&url));
}

#[tokio::test]
async fn dropping_a_server_stops_only_what_was_started_for_it() {
    let Ok(server) = Server::start(Settings::for_tests()).await else {
        return;
    };
    let url = server.url().to_owned();
    check(&url, "SELECT 1", "1");
    let ours = server.origin() != Origin::Url;
    drop(server);
    assert_eq!(is_listening(&url), !ours);
}

#[tokio::test]
async fn a_setting_the_server_refuses_is_named_in_the_error() {
    if private(Settings::for_tests()).await.is_err() {
        return;
    }
    let refused = Server::local(Settings::new(Engine::Postgres).with("no_such_setting", "1")).await;
    let error = refused.expect_err("the server does not know it");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn a_server_by_url_cannot_be_stopped() {
    let Ok(server) = postgres().await else {
        return;
    };
    if server.origin() == Origin::Url {
        let refused = server.stop(StopMode::Fast).await;
        assert!(matches!(refused, Err(ControlError::NotPrivate(_))));
    }
}

#[tokio::test]
async fn debug_output_hides_the_password() {
    let Ok(server) = private(Settings::for_tests()).await else {
        return;
    };
    let shown = format!("Server {{ engine: Postgres, origin: {:?}, .. }}", server.origin());
    assert_eq!(format!("{server:?}"), shown);
}

/// This test binary, run again as a child that starts a server, prints its URL and waits to be killed.
#[test]
fn a_killed_process_leaves_no_server_behind() {
    const CHILD: &str = "OUTBOX_TESTKIT_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return hold_a_server();
    }
    let mut child = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "a_killed_process_leaves_no_server_behind", "--nocapture"])
        .env(CHILD, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let url = first_url(child.stdout.take().expect("piped"));
    child.kill().expect("kills");
    child.wait().expect("ends");
    if let Some(url) = url {
        wait_until_gone(&url);
    }
}

fn hold_a_server() {
    let server: Result<_, StartError> =
        tokio::runtime::Runtime::new().expect("a runtime").block_on(Server::local(Settings::for_tests()));
    match server {
        Ok(server) => {
            println!("\nURL {}\n", server.url());
            std::thread::park();
        }
        Err(_) => println!("\nURL none\n"),
    }
}

fn first_url(mut output: impl Read) -> Option<String> {
    let mut text = String::new();
    let mut byte = [0; 1];
    while output.read_exact(&mut byte).is_ok() {
        text.push(char::from(byte[0]));
        let line = text.lines().find_map(|line| line.strip_prefix("URL "));
        if let (Some(url), b'\n') = (line, byte[0]) {
            return (url != "none").then(|| url.to_owned());
        }
    }
    None
}

fn wait_until_gone(url: &str) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while is_listening(url) {
        assert!(std::time::Instant::now() < deadline, "the server outlived the process that started it");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
