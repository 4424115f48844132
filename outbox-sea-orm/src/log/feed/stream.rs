//! The connection to the slot.

use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use outbox_core::{Error, ErrorKind, Result};
use pgwire_replication::{Lsn, PgWireError, ReplicationClient, ReplicationConfig, ReplicationEvent};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::buffer::{Arrived, Buffer, Position};
use super::rows::Columns;

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the server hears of us: more often than any usable `wal_sender_timeout`.
const INTERVAL: Duration = Duration::from_secs(1);
/// Events that are read ahead of the buffer, of whatever size.
const READ_AHEAD: usize = 16;

/// A server that is being stopped waits until all that it has sent is confirmed, which is not what a feed does, and asks for it
/// whenever it was answered; otherwise it asks twice in a `wal_sender_timeout`.
const MAX_PINGS: usize = 10;
const PING_WINDOW: Duration = Duration::from_secs(2);

/// A task that reads the slot; dropping this ends it.
pub(super) struct Stream {
    task: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What became of an attempt to read the slot.
pub(super) enum Opened {
    Stream(Stream),
    /// Somebody else reads it.
    Busy,
}

impl Stream {
    /// Reads on from `at` into `buffer`.
    pub(super) async fn open(
        config: ReplicationConfig,
        at: Position,
        next_xid: i64,
        buffer: Arc<Buffer>,
    ) -> Result<Opened> {
        let config = config
            .with_start_lsn(at.lsn)
            .with_status_interval(INTERVAL)
            .with_wakeup_interval(INTERVAL)
            .with_buffer_size(READ_AHEAD)
            .with_binary(true);
        let connect = async {
            let mut client = ReplicationClient::connect(config).await?;
            client.wait_started().await.map(|()| client)
        };
        let client = match timeout(PATIENCE, connect).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) if is_busy(&error) => return Ok(Opened::Busy),
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(Error::new(ErrorKind::Timeout, "feed")),
        };
        let reading = Reading {
            client,
            buffer,
            start: at,
            next_xid,
            columns: Columns::default(),
            commit: None,
            pings: Pings::new(),
        };
        Ok(Opened::Stream(Self { task: tokio::spawn(reading.run()) }))
    }
}

/// A transaction that arrives.
struct Commit {
    lsn: Lsn,
    xid: i64,
    n: i64,
    /// How many of its rows are behind the group already.
    n_behind: i64,
}

/// How often the server has asked for an answer lately.
struct Pings {
    n: usize,
    since: Instant,
}

impl Pings {
    fn new() -> Self {
        Self { n: 0, since: Instant::now() }
    }

    /// Whether the server is being stopped.
    fn add(&mut self) -> bool {
        if self.since.elapsed() > PING_WINDOW {
            *self = Self::new();
        }
        self.n += 1;
        self.n > MAX_PINGS
    }
}

struct Reading {
    client: ReplicationClient,
    buffer: Arc<Buffer>,
    start: Position,
    next_xid: i64,
    columns: Columns,
    commit: Option<Commit>,
    pings: Pings,
}

impl Reading {
    async fn run(mut self) {
        let mut ticked = Instant::now();
        loop {
            self.client.update_applied_lsn(self.buffer.confirmed());
            if ticked.elapsed() >= INTERVAL {
                self.buffer.wake_if_due();
                ticked = Instant::now();
            }
            let event = match timeout(INTERVAL, self.client.recv()).await {
                Err(_) => continue,
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return self.buffer.end(Error::new(ErrorKind::Unavailable, "feed")),
                Ok(Err(error)) => return self.buffer.end(failed(&error)),
            };
            match self.read(event) {
                Ok(true) => {}
                Ok(false) => self.wait_for_room().await,
                Err(error) => return self.buffer.end(error),
            }
        }
    }

    async fn wait_for_room(&self) {
        while !self.buffer.wait_for_room(INTERVAL).await {
            self.client.update_applied_lsn(self.buffer.confirmed());
        }
    }

    /// Whether there is room for more.
    fn read(&mut self, event: ReplicationEvent) -> Result<bool> {
        match event {
            ReplicationEvent::KeepAlive { reply_requested: true, .. } if self.pings.add() => {
                let detail = "the server is being stopped";
                return Err(Error::new(ErrorKind::Unavailable, "feed").with_detail(detail));
            }
            ReplicationEvent::Begin { final_lsn, xid, .. } => self.begin(final_lsn, xid),
            ReplicationEvent::XLogData { data, .. } => return self.row(data),
            ReplicationEvent::Commit { end_lsn, .. } => {
                self.commit = None;
                self.buffer.reach(Position::at(end_lsn));
            }
            // what was committed before has been sent before
            ReplicationEvent::KeepAlive { wal_end, .. } if self.commit.is_none() => {
                self.buffer.reach(Position::at(wal_end));
            }
            _ => {}
        }
        Ok(true)
    }

    fn begin(&mut self, lsn: Lsn, xid: u32) {
        let n_behind = match lsn.cmp(&self.start.lsn) {
            std::cmp::Ordering::Less => i64::MAX,
            std::cmp::Ordering::Equal => self.start.n,
            std::cmp::Ordering::Greater => 0,
        };
        let xid = widen(self.next_xid, xid);
        self.next_xid = self.next_xid.max(xid);
        self.commit = Some(Commit { lsn, xid, n: 0, n_behind });
    }

    fn row(&mut self, mut data: bytes::Bytes) -> Result<bool> {
        let Some(commit) = &mut self.commit else { return Ok(true) };
        match data.get(..1) {
            Some(b"R") => {
                data.advance(1);
                self.columns = Columns::read(data)?;
            }
            Some(b"I") => {
                commit.n += 1;
                if commit.n > commit.n_behind {
                    data.advance(1);
                    let behind = Position { lsn: commit.lsn, n: commit.n };
                    let row = self.columns.row(data)?;
                    return Ok(self.buffer.push(Arrived { row, xid: commit.xid, behind }));
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

/// The whole number of a transaction, by one that is less than 2^31 away.
fn widen(near: i64, xid: u32) -> i64 {
    near + i64::from(xid.wrapping_sub(near as u32) as i32)
}

/// Whether somebody else reads the slot.
pub(super) fn is_busy(error: &PgWireError) -> bool {
    error.to_string().contains("SQLSTATE 55006")
}

/// The server's words hold no payload and no password.
pub(super) fn failed(error: &PgWireError) -> Error {
    let text = error.to_string();
    let kind = match error {
        PgWireError::Auth(_) => ErrorKind::PermissionDenied,
        PgWireError::MessageTooLarge { .. } | PgWireError::Protocol(_) => ErrorKind::Undecodable,
        PgWireError::Tls(text) => kind_of_tls(text),
        PgWireError::Server(_) => kind_of(&text),
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "feed").with_detail(text)
}

fn kind_of_tls(text: &str) -> ErrorKind {
    if text.contains("invalid peer certificate") {
        // nobody logs in to a server that is not trusted
        ErrorKind::PermissionDenied
    } else if text.starts_with("TLS config error") {
        ErrorKind::InvalidInput
    } else if text.starts_with("TLS handshake failed") {
        ErrorKind::Unavailable
    } else {
        ErrorKind::Unsupported
    }
}

fn kind_of(text: &str) -> ErrorKind {
    let state = text.rsplit_once("SQLSTATE ").map_or("", |(_, state)| state.trim_end_matches(')'));
    match state {
        // authorization, privilege, password
        "28000" | "28P01" | "42501" => ErrorKind::PermissionDenied,
        // object not found, prerequisite state (the slot was invalidated, wal_level), no slot left
        "42704" | "55000" | "53400" => ErrorKind::Schema,
        "57014" => ErrorKind::Timeout,
        _ => ErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_number_is_widened_by_its_neighbour() {
        let epoch = 5 << 32;
        for (near, xid, whole) in [
            (100, 90, 90),
            (100, 110, 110),
            (epoch + 10, u32::MAX, epoch - 1),
            (epoch - 1, 3, epoch + 3),
            (epoch + (1 << 31), 7, epoch + 7),
        ] {
            assert_eq!(widen(near, xid), whole);
        }
    }

    #[test]
    fn what_an_operator_has_to_mend_is_not_retried() {
        let server = |text: &str| failed(&PgWireError::Server(text.to_owned()));
        assert_eq!(server("no such slot (SQLSTATE 42704)").kind(), ErrorKind::Schema);
        assert_eq!(server("must be superuser (SQLSTATE 42501)").kind(), ErrorKind::PermissionDenied);
        assert!(server("terminating connection (SQLSTATE 57P01)").is_retryable());
        let tls = |text: &str| failed(&PgWireError::Tls(text.to_owned())).kind();
        assert_eq!(
            tls("TLS handshake failed: invalid peer certificate: Expired"),
            ErrorKind::PermissionDenied
        );
        assert_eq!(tls("TLS config error: failed to open CA PEM"), ErrorKind::InvalidInput);
        assert_eq!(tls("server does not support TLS"), ErrorKind::Unsupported);
        assert_eq!(tls("TLS handshake failed: unexpected end of file"), ErrorKind::Unavailable);
        assert!(is_busy(&PgWireError::Server("slot is active (SQLSTATE 55006)".to_owned())));
    }
}
