//! Dispatchers, each a process of its own: this program run as a child.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, thread};

use outbox_core::Backoff;
use outbox_dispatcher::{CancellationToken, Config, Dispatcher};
use outbox_examples::AnyError;

use crate::ledger;
use crate::storage::{Place, Storage};

const NAME: &str = "QUICKSTART_DISPATCHER";

/// The name of the dispatcher that this process is meant to be.
pub(crate) fn own_name() -> Option<String> {
    env::var(NAME).ok()
}

/// The child's side: delivers until the parent closes our standard input, or is gone.
pub(crate) async fn dispatch(name: &str) -> Result<(), AnyError> {
    let storage = Storage::connect(&Place::from_parent()?).await?;
    // quick to notice a dead neighbour and slow to settle, so that a short run shows what a long one would
    let config = Config::default()
        .with_concurrency(8)
        .with_lease(Duration::from_secs(1))
        .with_settle_delay(Duration::from_millis(100))
        .with_backoff(Backoff::default().with_base(Duration::from_millis(200)))
        .with_min_poll(Duration::from_millis(10))
        .with_max_poll(Duration::from_millis(200));
    let router = ledger::router(&storage, name)?;
    let report = Dispatcher::new(storage.outbox, router).with_config(config)?.run(end_of_stdin()).await?;
    eprintln!(
        "  dispatcher {name} stopped: {} delivered, {} to retry, {} dead",
        report.n_done, report.n_retried, report.n_dead
    );
    Ok(())
}

fn end_of_stdin() -> CancellationToken {
    let token = CancellationToken::new();
    let ended = token.clone();
    thread::spawn(move || {
        // an error is an end as well
        let _ = io::stdin().read_to_end(&mut Vec::new());
        ended.cancel();
    });
    token
}

/// The parent's side. Whatever still runs when it is dropped is killed.
pub(crate) struct Fleet {
    place: Place,
    running: Vec<(&'static str, Child)>,
}

impl Fleet {
    pub(crate) fn new(place: &Place) -> Self {
        Self { place: place.clone(), running: Vec::new() }
    }

    pub(crate) fn start(&mut self, name: &'static str) -> Result<(), AnyError> {
        let mut command = Command::new(env::current_exe()?);
        command.env(NAME, name).stdin(Stdio::piped()).stdout(Stdio::null());
        self.place.hand_to(&mut command);
        let child = command.spawn()?;
        eprintln!("  dispatcher {name} started, process {}", child.id());
        self.running.push((name, child));
        Ok(())
    }

    /// SIGKILL: no clean-up, no farewell.
    pub(crate) fn kill(&mut self, name: &str) -> Result<(), AnyError> {
        let index = self.running.iter().position(|(running, _)| *running == name).ok_or("not running")?;
        let (_, mut child) = self.running.swap_remove(index);
        child.kill()?;
        let status = child.wait()?;
        if status.success() {
            return Err("the dispatcher had stopped by itself".into());
        }
        eprintln!("  dispatcher {name} killed: {status}");
        Ok(())
    }

    /// Lets every dispatcher finish what it has begun.
    pub(crate) fn stop(&mut self) -> Result<(), AnyError> {
        for (_, child) in &mut self.running {
            drop(child.stdin.take());
        }
        for (name, mut child) in self.running.drain(..) {
            let status = child.wait()?;
            if !status.success() {
                return Err(format!("dispatcher {name}: {status}").into());
            }
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            // it may be gone already
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
