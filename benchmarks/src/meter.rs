//! What a piece of work used: time, statements, WAL, CPU of this process and of the server.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::clock::Stopwatch;
use crate::error::Result;
use crate::report::rounded;
use crate::site::{Counters, Pin, Site};
use crate::stats::median;
use crate::{proc, statements};

/// Runs while something is measured.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    site: &'a Site,
    file: Option<&'a Path>,
    pin: Option<Pin>,
    counters: Counters,
    cpu: Cpu,
    watch: Stopwatch,
}

impl<'a> Meter<'a> {
    /// Starts. `file` is the database file on SQLite; there, statements and WAL are counted only where
    /// `detailed`, because counting them changes the rate.
    pub(crate) async fn start(site: &'a Site, file: Option<&'a Path>, detailed: bool) -> Result<Self> {
        let pin = match file {
            Some(file) if detailed => Some(Pin::new(file).await?),
            _ => None,
        };
        statements::count(pin.is_some());
        let counters = site.counters(file).await?;
        let cpu = Cpu::now(site);
        Ok(Self { site, file, pin, counters, cpu, watch: Stopwatch::start() })
    }

    /// Stops after so many messages.
    pub(crate) async fn stop(self, n_messages: u64) -> Result<Usage> {
        let elapsed = self.watch.elapsed();
        let cpu = Cpu::now(self.site);
        let counters = self.site.counters(self.file).await?;
        statements::count(false);
        let is_disturbed = self.pin.is_some();
        let counted = self.file.is_none() || is_disturbed;
        if let Some(pin) = self.pin {
            pin.release().await?;
        }
        Ok(Usage {
            n_messages,
            elapsed,
            statements: counted.then(|| counters.statements.saturating_sub(self.counters.statements)),
            wal_bytes: counted.then(|| counters.wal_bytes.saturating_sub(self.counters.wal_bytes)),
            cpu: cpu.since(&self.cpu),
            is_disturbed,
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Cpu {
    client: Duration,
    server: Option<Duration>,
    machine: Duration,
}

impl Cpu {
    fn now(site: &Site) -> Self {
        let server = site.postmaster().and_then(proc::server_cpu);
        Self { client: proc::own_cpu(), server, machine: proc::machine_cpu() }
    }

    fn since(&self, earlier: &Self) -> Self {
        let server = self.server.zip(earlier.server).map(|(now, then)| now.saturating_sub(then));
        Self {
            client: self.client.saturating_sub(earlier.client),
            server,
            machine: self.machine.saturating_sub(earlier.machine),
        }
    }
}

/// What was used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) n_messages: u64,
    pub(crate) elapsed: Duration,
    pub(crate) statements: Option<u64>,
    pub(crate) wal_bytes: Option<u64>,
    cpu: Cpu,
    /// Counting changed the rate.
    is_disturbed: bool,
}

impl Usage {
    /// Messages per second.
    pub(crate) fn rate(&self) -> f64 {
        self.undisturbed(self.n_messages as f64 / self.elapsed.as_secs_f64())
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.undisturbed(self.elapsed.as_secs_f64())
    }

    fn undisturbed(&self, figure: f64) -> f64 {
        if self.is_disturbed { f64::NAN } else { figure }
    }

    pub(crate) fn statements_per_message(&self) -> f64 {
        self.per_message(self.statements.map(|statements| statements as f64))
    }

    pub(crate) fn wal_bytes_per_message(&self) -> f64 {
        self.per_message(self.wal_bytes.map(|bytes| bytes as f64))
    }

    /// Of this process, in microseconds.
    pub(crate) fn client_cpu(&self) -> f64 {
        self.undisturbed(self.per_message(Some(self.cpu.client.as_secs_f64() * 1e6)))
    }

    /// Of this process and the server, in microseconds.
    pub(crate) fn cpu_per_message(&self) -> f64 {
        self.client_cpu() + self.server_cpu()
    }

    fn server_cpu(&self) -> f64 {
        self.per_message(self.cpu.server.map(|cpu| cpu.as_secs_f64() * 1e6))
    }

    fn per_message(&self, figure: Option<f64>) -> f64 {
        figure.map_or(f64::NAN, |figure| figure / self.n_messages as f64)
    }

    /// How many cores this process and the server kept busy.
    fn cores(&self) -> f64 {
        self.undisturbed(self.cpu_per_message() * self.rate() / 1e6)
    }

    /// The share of one core that other programs of this machine used meanwhile: what it is above zero is noise.
    fn foreign_cores(&self) -> f64 {
        let own = self.cpu.client + self.cpu.server.unwrap_or_default();
        self.undisturbed(self.cpu.machine.saturating_sub(own).as_secs_f64() / self.elapsed.as_secs_f64())
    }
}

/// One number of a run.
type Figure = fn(&Usage) -> f64;

/// The medians of several runs of the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds(Vec<Usage>);

impl Rounds {
    pub(crate) fn push(&mut self, usage: Usage) {
        self.0.push(usage);
    }

    pub(crate) fn median(&self, figure: impl Fn(&Usage) -> f64) -> f64 {
        let figures: Vec<f64> = self.0.iter().map(figure).filter(|figure| figure.is_finite()).collect();
        median(&figures)
    }

    /// The median rate as a share of another's.
    pub(crate) fn ratio_to(&self, other: &Self) -> f64 {
        self.median(Usage::rate) / other.median(Usage::rate)
    }

    pub(crate) fn rates(&self) -> Vec<f64> {
        self.0.iter().map(Usage::rate).filter(|rate| rate.is_finite()).collect()
    }

    pub(crate) fn json(&self) -> Value {
        let figures: [(&str, Figure); 8] = [
            ("messages_per_second", Usage::rate),
            ("seconds", Usage::seconds),
            ("statements_per_message", Usage::statements_per_message),
            ("wal_bytes_per_message", Usage::wal_bytes_per_message),
            ("client_cpu_us_per_message", Usage::client_cpu),
            ("server_cpu_us_per_message", Usage::server_cpu),
            ("cores", Usage::cores),
            ("foreign_cores", Usage::foreign_cores),
        ];
        let medians = figures.map(|(name, figure)| (name.to_owned(), rounded(self.median(figure))));
        Value::Object(Map::from_iter(medians))
    }
}
