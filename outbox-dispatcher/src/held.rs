//! Every message this dispatcher has a lease for, and where it is: waiting, at work, finished or being
//! settled. Plain data; [`Desk`](crate::desk::Desk) shares it between the tasks.

use std::collections::{HashSet, VecDeque};
use std::mem;
use std::time::Duration;

use outbox_core::{Claimed, Lease, MAX_BATCH, Message, Outcome, Settled};
use tokio::time::Instant;

use crate::pace::Pace;
use crate::pause::{Allowed, Gate};
use crate::router::{Route, Router};
use crate::{Config, Report};

/// What is kept of a message while its handler has it.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) lease: Lease,
    pub(crate) route: Route,
    pub(crate) attempt: u32,
    /// From an expired lease: it may have killed the process that had it.
    is_suspect: bool,
    /// Tried while paused.
    is_probe: bool,
}

struct Waiting {
    ticket: Ticket,
    message: Message,
}

/// A place for one handler; there are `concurrency` of them.
enum Place {
    Free,
    /// Its worker is between two messages.
    Between,
    At(Ticket, Option<Order>),
}

/// Why a handler is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Lost,
    GiveBack,
}

#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) ticket: Ticket,
    pub(crate) outcome: Outcome,
}

/// What the claim loop may do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Claim { limit: usize, recover: bool },
    Full,
    Paused(Instant),
}

/// What the claim loop waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Nothing,
    Room,
    Settled,
}

/// What a worker does next, and whom it has to tell.
pub(crate) struct Step {
    pub(crate) next: Option<(Message, Route)>,
    pub(crate) resumed: bool,
    pub(crate) calls: Calls,
}

/// Tasks to wake after the lock is gone.
#[derive(Clone, Copy, Default)]
pub(crate) struct Calls {
    pub(crate) claim_loop: bool,
    pub(crate) settler: bool,
}

pub(crate) struct Held {
    waiting: VecDeque<Waiting>,
    places: Vec<Place>,
    free: Vec<usize>,
    finished: Vec<Finished>,
    settling: Vec<Lease>,
    settling_since: Option<Instant>,
    n_suspects: usize,
    pace: Pace,
    gate: Gate,
    batch: usize,
    is_closed: bool,
    awaited: Awaited,
    should_look: bool,
    due: Option<Instant>,
    report: Report,
}

impl Held {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            waiting: VecDeque::new(),
            places: (0..config.concurrency).map(|_| Place::Free).collect(),
            free: (0..config.concurrency).rev().collect(),
            finished: Vec::new(),
            settling: Vec::new(),
            settling_since: None,
            n_suspects: 0,
            pace: Pace::new(config.concurrency, config.batch),
            gate: Gate::default(),
            batch: config.batch,
            is_closed: false,
            awaited: Awaited::Nothing,
            should_look: false,
            due: None,
            report: Report::default(),
        }
    }
}

// claiming
impl Held {
    pub(crate) fn room(&mut self, now: Instant) -> Room {
        self.gate.pass_time(now);
        self.awaited = Awaited::Nothing;
        self.due = self.due.filter(|due| *due > now);
        match self.gate.allowed() {
            Allowed::NothingUntil(until) => Room::Paused(until),
            _ => match self.limit() {
                0 => {
                    self.awaited = Awaited::Room;
                    Room::Full
                }
                limit => Room::Claim { limit, recover: self.n_suspects == 0 },
            },
        }
    }

    fn limit(&self) -> usize {
        if self.finished.len() + self.settling.len() > 2 * MAX_BATCH + self.places.len() {
            return 0;
        }
        let limit = self.pace.limit(self.free.len(), self.waiting.len());
        match self.gate.allowed() {
            Allowed::All => limit,
            Allowed::One => limit.min(1),
            Allowed::Nothing | Allowed::NothingUntil(_) => 0,
        }
    }

    /// Takes over what a claim brought; returns the places whose workers are to be started.
    pub(crate) fn accept(&mut self, claimed: Vec<Claimed>, is_suspect: bool, router: &Router) -> Vec<usize> {
        let is_probe = !self.gate.is_open();
        let is_refused = self.is_closed || matches!(self.gate.allowed(), Allowed::NothingUntil(_));
        self.report.n_claimed += claimed.len() as u64;
        self.n_suspects += if is_suspect { claimed.len() } else { 0 };
        self.gate.set_trying(!claimed.is_empty());
        self.waiting.extend(claimed.into_iter().map(|Claimed { message, lease }| {
            let (route, attempt) = (router.find(&message.topic), message.attempt);
            Waiting { ticket: Ticket { lease, route, attempt, is_suspect, is_probe }, message }
        }));
        if is_refused {
            self.release_waiting();
        }
        self.occupy()
    }

    fn occupy(&mut self) -> Vec<usize> {
        let rest = self.free.len().saturating_sub(self.waiting.len());
        let places = self.free.split_off(rest);
        for place in &places {
            self.places[*place] = Place::Between;
        }
        places
    }

    /// A full claim has arrived: did the handlers wait for it?
    pub(crate) fn note_full_claim(&mut self) {
        if self.waiting.is_empty() && !self.free.is_empty() {
            self.pace.starved();
        }
    }

    pub(crate) fn note_wait(&mut self, waited: Duration) {
        self.pace.waited(waited);
    }

    pub(crate) fn note_dead(&mut self, n_dead: usize) {
        self.report.n_dead += n_dead as u64;
        self.report.n_dead_unclaimed += n_dead as u64;
    }

    pub(crate) fn note_due(&mut self, due: Instant) {
        self.due = Some(self.due.map_or(due, |known| known.min(due)));
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether there is a new reason to claim, once.
    pub(crate) fn take_look(&mut self) -> bool {
        mem::take(&mut self.should_look)
    }
}

// handling
impl Held {
    /// Takes a worker's result and gives it the next message, or frees its place.
    pub(crate) fn step(&mut self, place: usize, outcome: Option<Outcome>, opens: bool) -> Step {
        let n_before = self.finished.len();
        let resumed = outcome.is_some_and(|outcome| self.finish(place, outcome, opens));
        let next = self.waiting.pop_front().map(|Waiting { ticket, message }| {
            let route = ticket.route.clone();
            self.places[place] = Place::At(ticket, None);
            (message, route)
        });
        if next.is_none() {
            self.places[place] = Place::Free;
            self.free.push(place);
        }
        Step { next, resumed, calls: self.calls(n_before) }
    }

    fn finish(&mut self, place: usize, outcome: Outcome, opens: bool) -> bool {
        let Place::At(ticket, order) = mem::replace(&mut self.places[place], Place::Between) else {
            return false;
        };
        if order == Some(Order::Lost) {
            self.drop_ticket(&ticket);
            return false;
        }
        let resumed = ticket.is_probe && opens && self.gate.open();
        self.should_look |= resumed;
        if ticket.is_probe {
            self.gate.set_trying(false);
        }
        self.finished.push(Finished { ticket, outcome });
        resumed
    }

    fn drop_ticket(&mut self, ticket: &Ticket) {
        if ticket.is_probe {
            self.gate.set_trying(false);
        }
        if ticket.is_suspect {
            self.n_suspects = self.n_suspects.saturating_sub(1);
            self.should_look |= self.n_suspects == 0;
        }
    }

    fn calls(&mut self, n_before: usize) -> Calls {
        let n = self.finished.len();
        let first = n_before == 0 && n > 0;
        let enough = n_before < self.batch && n >= self.batch;
        let settler = first || enough || (n > 0 && self.is_idle());
        Calls { claim_loop: self.is_loop_called(), settler }
    }

    fn is_loop_called(&mut self) -> bool {
        let is_met = match self.awaited {
            Awaited::Nothing => false,
            Awaited::Room => self.limit() > 0,
            Awaited::Settled => self.is_settled(),
        };
        if is_met {
            self.awaited = Awaited::Nothing;
        }
        is_met || self.should_look
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.free.len() == self.places.len()
    }

    /// Closes the gate; `None` when it is closed already. What waits is given back either way.
    pub(crate) fn pause(&mut self, now: Instant, config: &Config, random: f64) -> Option<Duration> {
        self.release_waiting();
        self.gate.close(now, &config.pause, random).inspect(|_| self.should_look = true)
    }

    fn release_waiting(&mut self) {
        let waiting = mem::take(&mut self.waiting).into_iter();
        let release = |Waiting { ticket, .. }| Finished { ticket, outcome: Outcome::Release };
        self.finished.extend(waiting.map(release));
    }

    pub(crate) fn is_called_off(&self, place: usize) -> bool {
        matches!(self.places[place], Place::At(_, Some(_)))
    }
}

// leases
impl Held {
    /// The leases to renew. Of what is being settled, only what takes longer than `patience`: settling and
    /// renewing at once would wait for each other.
    pub(crate) fn leases(&self, now: Instant, patience: Duration) -> Vec<Lease> {
        let waiting = self.waiting.iter().map(|waiting| waiting.ticket.lease);
        let at_work = self.places.iter().filter_map(|place| match place {
            Place::At(ticket, None) => Some(ticket.lease),
            _ => None,
        });
        let finished = self.finished.iter().map(|finished| finished.ticket.lease);
        let is_slow = self.settling_since.is_some_and(|since| now.duration_since(since) >= patience);
        let settling = self.settling.iter().copied().filter(|_| is_slow);
        waiting.chain(at_work).chain(finished).chain(settling).collect()
    }

    /// Forgets what is lost and not finished; returns it, and the places whose handlers are to be dropped.
    pub(crate) fn lose(&mut self, lost: &HashSet<Lease>) -> (Vec<Ticket>, Vec<usize>) {
        self.lose_those(|lease| lost.contains(lease))
    }

    /// Forgets what comes back with a new lease: the old one has expired.
    pub(crate) fn lose_returned(&mut self, claimed: &[Claimed]) -> (Vec<Ticket>, Vec<usize>) {
        let returned: HashSet<_> = claimed.iter().map(|claimed| claimed.lease.id).collect();
        self.lose_those(|lease| returned.contains(&lease.id))
    }

    fn lose_those(&mut self, is_lost: impl Fn(&Lease) -> bool) -> (Vec<Ticket>, Vec<usize>) {
        let (mut tickets, mut places) = (Vec::new(), Vec::new());
        let (gone, waiting): (VecDeque<_>, _) = mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting: &Waiting| is_lost(&waiting.ticket.lease));
        self.waiting = waiting;
        for Waiting { ticket, .. } in gone {
            self.drop_ticket(&ticket);
            tickets.push(ticket);
        }
        for (index, place) in self.places.iter_mut().enumerate() {
            if let Place::At(ticket, order @ None) = place
                && is_lost(&ticket.lease)
            {
                *order = Some(Order::Lost);
                tickets.push(ticket.clone());
                places.push(index);
            }
        }
        self.report.n_lease_lost += tickets.len() as u64;
        (tickets, places)
    }
}

// settling
impl Held {
    pub(crate) fn n_finished(&self) -> usize {
        self.finished.len()
    }

    /// Whether what is finished should be settled without waiting for more.
    pub(crate) fn is_settling_due(&self) -> bool {
        self.finished.len() >= self.batch || self.is_idle()
    }

    pub(crate) fn take_finished(&mut self, now: Instant) -> Vec<Finished> {
        let rest = self.finished.split_off(self.finished.len().min(MAX_BATCH));
        let batch = mem::replace(&mut self.finished, rest);
        self.settling = batch.iter().map(|finished| finished.ticket.lease).collect();
        self.settling_since = Some(now);
        batch
    }

    /// Counts what became of a batch; `uncertain`: an earlier try may have done it.
    pub(crate) fn settled(&mut self, batch: &[Finished], answers: &[Settled], uncertain: bool) -> Calls {
        for (finished, answer) in batch.iter().zip(answers) {
            self.drop_ticket(&finished.ticket);
            self.report.count(&finished.outcome, *answer, uncertain);
        }
        self.settling.clear();
        self.settling_since = None;
        Calls { claim_loop: self.is_loop_called(), settler: false }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.is_idle() && self.finished.is_empty() && self.settling.is_empty()
    }

    pub(crate) fn await_settled(&mut self) {
        self.awaited = Awaited::Settled;
    }
}

// stopping
impl Held {
    /// Nothing is started any more; what waits is given back.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
        self.release_waiting();
    }

    /// Says to every running handler that it is dropped; returns their places.
    pub(crate) fn give_back_running(&mut self) -> Vec<usize> {
        let mut places = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            if let Place::At(_, order @ None) = place {
                *order = Some(Order::GiveBack);
                places.push(index);
            }
        }
        places
    }

    /// The numbers of the run; what is still held counts as unsettled.
    pub(crate) fn report(&self) -> Report {
        let at_work = self
            .places
            .iter()
            .filter(|place| matches!(place, Place::At(_, order) if *order != Some(Order::Lost)));
        let n_held = at_work.count() + self.waiting.len() + self.finished.len() + self.settling.len();
        Report { n_unsettled: n_held as u64, ..self.report }
    }
}

impl Report {
    fn count(&mut self, outcome: &Outcome, answer: Settled, uncertain: bool) {
        let counter = match (answer, outcome) {
            (Settled::LeaseLost, _) if uncertain => &mut self.n_unconfirmed,
            (Settled::LeaseLost, _) => &mut self.n_lease_lost,
            (Settled::Applied, Outcome::Done) => &mut self.n_done,
            (Settled::Applied, Outcome::Retry { .. }) => &mut self.n_retried,
            (Settled::Applied, Outcome::Dead { .. }) => &mut self.n_dead,
            (Settled::Applied, Outcome::Release) => &mut self.n_released,
        };
        *counter += 1;
    }
}
