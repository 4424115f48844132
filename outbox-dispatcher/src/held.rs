//! Every message this dispatcher has a lease for, and where it is: waiting, at work, finished or being
//! settled. Plain data; [`Desk`](crate::desk::Desk) shares it between the tasks.

use std::collections::HashSet;
use std::time::Duration;
use std::{iter, mem, slice};

use outbox_core::{Claim, Claimed, Lease, MAX_BATCH, Message, Outcome, Settled};
use tokio::time::Instant;

use crate::lane::{Demand, Lane, Limiter, Start, Waiting};
use crate::pause::Allowed;
use crate::plan::Plan;
use crate::router::Route;
use crate::runs::{Key, Runs};
use crate::{Config, Report};

/// What is kept of a message while its handler has it.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub(crate) lease: Lease,
    pub(crate) route: Route,
    pub(crate) lane: usize,
    pub(crate) attempt: u32,
    /// The ordered key it belongs to.
    pub(crate) run: Option<Key>,
    /// From an expired lease: it may have killed the process that had it.
    is_suspect: bool,
    /// Tried while paused.
    is_probe: bool,
}

/// A place for one handler; there are `concurrency` of them.
enum Place {
    Free,
    /// Its worker is between two handlers.
    Between,
    At(Slot),
    AtBatch(Vec<Slot>),
}

/// A message that a handler has.
struct Slot {
    ticket: Ticket,
    order: Option<Order>,
}

/// Why a handler is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Lost,
    GiveBack,
}

impl Place {
    fn slots(&self) -> &[Slot] {
        match self {
            Self::Free | Self::Between => &[],
            Self::At(slot) => slice::from_ref(slot),
            Self::AtBatch(slots) => slots,
        }
    }

    fn slots_mut(&mut self) -> &mut [Slot] {
        match self {
            Self::Free | Self::Between => &mut [],
            Self::At(slot) => slice::from_mut(slot),
            Self::AtBatch(slots) => slots,
        }
    }

    /// Whether nothing of what its handler does counts any more.
    fn is_called_off(&self) -> bool {
        let slots = self.slots();
        !slots.is_empty() && slots.iter().all(|slot| slot.order.is_some())
    }
}

#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) ticket: Ticket,
    pub(crate) outcome: Outcome,
}

/// What the claim loop may do next for a lane.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Claim {
        limit: usize,
        recover: bool,
    },
    /// Nothing until something ends, or this time has come.
    Full(Option<Instant>),
    Paused(Instant),
}

/// What a handler gets.
pub(crate) enum Job {
    One(Message, Route),
    Batch(Vec<Message>, Route),
}

/// What a handler has made of its messages.
pub(crate) struct Ended {
    pub(crate) outcomes: Outcomes,
    /// Whether it shows that the downstream is there.
    pub(crate) opens: bool,
    pub(crate) route: Route,
}

pub(crate) enum Outcomes {
    One(Outcome),
    Each(Vec<Outcome>),
}

/// What a worker does next, and whom it has to tell.
pub(crate) struct Step {
    pub(crate) next: Option<Job>,
    /// What goes on after a pause.
    pub(crate) resumed: Option<Route>,
    pub(crate) calls: Calls,
}

/// Tasks to wake after the lock is gone.
#[derive(Clone, Copy, Default)]
pub(crate) struct Calls {
    pub(crate) claim_loop: bool,
    pub(crate) settler: bool,
    pub(crate) starter: bool,
}

pub(crate) struct Held {
    lanes: Vec<Lane>,
    limiters: Vec<Limiter>,
    /// The lane that is asked first for the next handler.
    turn: usize,
    runs: Runs,
    places: Vec<Place>,
    free: Vec<usize>,
    /// When the starter looks again.
    alarm: Option<Instant>,
    finished: Vec<Finished>,
    settling: Vec<Lease>,
    settling_since: Option<Instant>,
    n_suspects: usize,
    batch: usize,
    is_closed: bool,
    /// The claim loop waits until nothing is held.
    awaits_settled: bool,
    should_look: bool,
    due: Option<Instant>,
    report: Report,
}

impl Held {
    pub(crate) fn new(config: &Config, plan: &Plan, now: Instant) -> Self {
        Self {
            lanes: plan.lanes(config),
            limiters: config.limits.iter().map(|limit| Limiter::new(limit, now)).collect(),
            turn: 0,
            runs: Runs::default(),
            places: (0..config.concurrency).map(|_| Place::Free).collect(),
            free: (0..config.concurrency).rev().collect(),
            alarm: None,
            finished: Vec::new(),
            settling: Vec::new(),
            settling_since: None,
            n_suspects: 0,
            batch: config.batch,
            is_closed: false,
            awaits_settled: false,
            should_look: false,
            due: None,
            report: Report::default(),
        }
    }

    fn n_waiting(&self) -> usize {
        self.lanes.iter().map(|lane| lane.queue.len()).sum::<usize>() + self.runs.n_followers()
    }
}

// claiming
impl Held {
    /// A new round of claims begins: it answers every reason there was to look.
    pub(crate) fn begin_round(&mut self) {
        self.should_look = false;
        self.awaits_settled = false;
    }

    pub(crate) fn room(&mut self, lane: usize, now: Instant) -> Room {
        self.due = self.due.filter(|due| *due > now);
        self.lanes[lane].gate.pass_time(now);
        if let Allowed::NothingUntil(until) = self.lanes[lane].gate.allowed() {
            return Room::Paused(until);
        }
        match self.demand(lane, 0, now) {
            Demand::Messages(limit) => {
                self.lanes[lane].note_room(now);
                Room::Claim { limit, recover: self.n_suspects == 0 }
            }
            Demand::At(at) => Room::Full(Some(at)),
            Demand::Nothing => {
                self.lanes[lane].note_full(now);
                Room::Full(None)
            }
        }
    }

    /// The same for a claim beside others, which may bring `n_coming` messages; never paused.
    pub(crate) fn room_beside(&mut self, lane: usize, n_coming: usize, now: Instant) -> Room {
        match (self.lanes[lane].gate.allowed(), self.demand(lane, n_coming, now)) {
            (Allowed::All, Demand::Messages(limit)) => {
                self.lanes[lane].note_room(now);
                Room::Claim { limit, recover: self.n_suspects == 0 }
            }
            // not only because of what is coming
            (Allowed::All, Demand::Nothing) if self.demand(lane, 0, now) == Demand::Nothing => {
                self.lanes[lane].note_full(now);
                Room::Full(None)
            }
            _ => Room::Full(None),
        }
    }

    /// What may be claimed when `n_coming` messages more have come.
    fn demand(&self, lane: usize, n_coming: usize, now: Instant) -> Demand {
        if self.finished.len() + self.settling.len() > 2 * MAX_BATCH + self.places.len() {
            return Demand::Nothing;
        }
        let most = match self.lanes[lane].gate.allowed() {
            Allowed::All => self.most(),
            Allowed::One => 1,
            Allowed::Nothing | Allowed::NothingUntil(_) => 0,
        };
        match self.lanes[lane].demand(&self.limiters, self.free.len(), n_coming, now) {
            Demand::Messages(_) if most == 0 => Demand::Nothing,
            Demand::Messages(limit) => Demand::Messages(limit.min(most)),
            other => other,
        }
    }

    /// While many messages wait for others of their keys: no more than what can be started at once.
    fn most(&self) -> usize {
        match self.runs.n_followers() > 2 * self.batch {
            true => self.free.len(),
            false => usize::MAX,
        }
    }

    /// Takes over what a claim for `lane` brought; returns the places whose workers are to be started.
    pub(crate) fn accept(
        &mut self,
        lane: usize,
        claim: Claim,
        is_full: bool,
        now: Instant,
        find: impl Fn(&str) -> (Route, usize),
    ) -> (Vec<usize>, Calls) {
        let n_before = self.finished.len();
        if is_full {
            self.lanes[lane].note_full_claim(&self.limiters, self.free.len());
        }
        self.note_claim(&claim);
        let gate = &mut self.lanes[lane].gate;
        let (is_probe, is_paused) = (!gate.is_open(), matches!(gate.allowed(), Allowed::NothingUntil(_)));
        let Claim { messages, recovered: is_suspect, ordered, .. } = claim;
        gate.set_trying(!messages.is_empty());
        for Claimed { message, lease } in messages {
            let ((route, lane), attempt) = (find(&message.topic), message.attempt);
            let ticket = Ticket { lease, route, lane, attempt, run: None, is_suspect, is_probe };
            self.queue(Waiting { ticket, message, since: now }, ordered);
        }
        if self.is_closed {
            self.release_waiting();
        } else if is_paused {
            self.release_lane(lane);
        }
        (self.occupy(now), self.calls(n_before, now))
    }

    fn note_claim(&mut self, claim: &Claim) {
        let n_messages = claim.messages.len();
        self.report.n_dead += claim.n_dead as u64;
        self.report.n_dead_unclaimed += claim.n_dead as u64;
        self.report.n_claimed += n_messages as u64;
        self.n_suspects += if claim.recovered { n_messages } else { 0 };
    }

    fn queue(&mut self, waiting: Waiting, ordered: bool) {
        if !ordered {
            self.lanes[waiting.ticket.lane].queue.push_back(waiting);
        } else if let Some(first) = self.runs.join(waiting) {
            self.lanes[first.ticket.lane].queue.push_back(first);
        }
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
    /// Places for what may be started; their workers are to be started by the caller.
    fn occupy(&mut self, now: Instant) -> Vec<usize> {
        let rest = self.free.len() - self.n_startable(now);
        let places = self.free.split_off(rest);
        for place in &places {
            self.places[*place] = Place::Between;
        }
        places
    }

    fn n_startable(&self, now: Instant) -> usize {
        let n_free = self.free.len();
        let ready = |n: usize, lane: &Lane| match n < n_free {
            true => n_free.min(n.saturating_add(lane.n_ready(&self.limiters, now))),
            false => n,
        };
        self.lanes.iter().fold(0, ready)
    }

    /// For the starter: the places to start, and when to look again.
    pub(crate) fn start_due(&mut self, now: Instant) -> (Vec<usize>, Option<Instant>) {
        let places = self.occupy(now);
        self.alarm = self.next_start(now);
        (places, self.alarm)
    }

    /// When something may be started that may not be now, if there is a place for it.
    fn next_start(&self, now: Instant) -> Option<Instant> {
        let at = |lane: &Lane| match lane.start(&self.limiters, now) {
            Start::At(at) => Some(at),
            Start::Now | Start::Later => None,
        };
        self.lanes.iter().filter_map(at).min().filter(|_| !self.free.is_empty())
    }

    /// Takes a worker's result and gives it the next job, or frees its place.
    pub(crate) fn step(&mut self, place: usize, ended: Option<Ended>, now: Instant) -> Step {
        let n_before = self.finished.len();
        let resumed = ended.and_then(|ended| self.finish(place, ended));
        let next = self.next_job(place, now);
        if next.is_none() {
            self.places[place] = Place::Free;
            self.free.push(place);
        }
        Step { next, resumed, calls: self.calls(n_before, now) }
    }

    fn next_job(&mut self, place: usize, now: Instant) -> Option<Job> {
        let n_lanes = self.lanes.len();
        let lane = (self.turn..self.turn + n_lanes)
            .map(|lane| lane % n_lanes)
            .find(|lane| self.lanes[*lane].start(&self.limiters, now) == Start::Now)?;
        self.turn = (lane + 1) % n_lanes;
        let n = self.lanes[lane].n_next(&self.limiters, now);
        if let Some(limiter) = self.lanes[lane].limiter {
            self.limiters[limiter].start(n, now);
        }
        let lane = &mut self.lanes[lane];
        match lane.is_batching() {
            true => Some(self.places[place].fill(lane.queue.drain(..n))),
            false => lane.queue.pop_front().map(|waiting| self.places[place].put(waiting)),
        }
    }

    /// Where it goes on, if it opened a gate.
    fn finish(&mut self, place: usize, Ended { outcomes, opens, route }: Ended) -> Option<Route> {
        let resumed = match (mem::replace(&mut self.places[place], Place::Between), outcomes) {
            (Place::At(slot), Outcomes::One(outcome)) => {
                self.end_handler(slot.ticket.lane);
                self.finish_one(slot, outcome, opens)
            }
            (Place::AtBatch(slots), Outcomes::Each(outcomes)) => {
                slots
                    .first()
                    .map(|slot| slot.ticket.lane)
                    .into_iter()
                    .for_each(|lane| self.end_handler(lane));
                let outcomes = outcomes.into_iter().chain(iter::repeat(Outcome::Release));
                let ended = slots.into_iter().zip(outcomes);
                ended.fold(false, |resumed, (slot, outcome)| self.finish_one(slot, outcome, opens) || resumed)
            }
            _ => false,
        };
        resumed.then_some(route)
    }

    /// How many lanes claim nothing, or one message to try.
    pub(crate) fn n_paused(&self) -> usize {
        self.lanes.iter().filter(|lane| !lane.gate.is_open()).count()
    }

    fn end_handler(&mut self, lane: usize) {
        if let Some(limiter) = self.lanes[lane].limiter {
            self.limiters[limiter].end();
        }
    }

    fn finish_one(&mut self, Slot { ticket, order }: Slot, outcome: Outcome, opens: bool) -> bool {
        if order == Some(Order::Lost) {
            self.drop_ticket(&ticket);
            return false;
        }
        let gate = &mut self.lanes[ticket.lane].gate;
        let resumed = ticket.is_probe && opens && gate.open();
        if ticket.is_probe {
            gate.set_trying(false);
        }
        self.should_look |= resumed;
        match &ticket.run {
            Some(run) if outcome == Outcome::Done => {
                if let Some(next) = self.runs.next(run) {
                    self.lanes[next.ticket.lane].queue.push_front(next);
                }
                self.finished.push(Finished { ticket, outcome });
            }
            Some(run) => {
                let run = Key::clone(run);
                self.finished.push(Finished { ticket, outcome });
                self.end_run(&run);
            }
            None => self.finished.push(Finished { ticket, outcome }),
        }
        resumed
    }

    /// What comes after a message that was not delivered must not overtake it.
    fn end_run(&mut self, run: &str) {
        let followers = self.runs.end(run);
        self.finished.extend(followers.into_iter().map(released));
    }

    fn drop_ticket(&mut self, ticket: &Ticket) {
        if ticket.is_probe {
            self.lanes[ticket.lane].gate.set_trying(false);
        }
        if ticket.is_suspect {
            self.n_suspects = self.n_suspects.saturating_sub(1);
            self.should_look |= self.n_suspects == 0;
        }
    }

    fn calls(&mut self, n_before: usize, now: Instant) -> Calls {
        let n = self.finished.len();
        let first = n_before == 0 && n > 0;
        let enough = n_before < self.batch && n >= self.batch;
        let settler = first || enough || (n > 0 && self.is_idle());
        Calls { claim_loop: self.is_loop_called(now), settler, starter: self.is_starter_called(now) }
    }

    fn is_loop_called(&mut self, now: Instant) -> bool {
        let has_room =
            |lane: usize| self.lanes[lane].is_awaited() && self.demand(lane, 0, now) != Demand::Nothing;
        if (0..self.lanes.len()).any(has_room) {
            self.lanes.iter_mut().for_each(Lane::call);
            self.should_look = true;
        }
        let is_settled = self.awaits_settled && self.is_settled();
        self.awaits_settled &= !is_settled;
        self.should_look || is_settled
    }

    /// Whether somebody else than this worker has something to start, now or earlier than known.
    fn is_starter_called(&self, now: Instant) -> bool {
        if self.free.is_empty() {
            return false;
        }
        let is_earlier = |at| self.alarm.is_none_or(|alarm| at < alarm);
        self.n_startable(now) > 0 || self.next_start(now).is_some_and(is_earlier)
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.places.len() && self.n_waiting() == 0
    }

    /// Closes the gate of a lane, and says for how long; `None` when it is closed already. What waits in the lane is
    /// given back either way.
    pub(crate) fn pause(
        &mut self,
        lane: usize,
        now: Instant,
        config: &Config,
        random: f64,
    ) -> Option<Duration> {
        self.release_lane(lane);
        let pause = self.lanes[lane].gate.close(now, &config.pause, random)?;
        self.should_look = true;
        Some(pause)
    }

    fn release_lane(&mut self, lane: usize) {
        let waiting = mem::take(&mut self.lanes[lane].queue);
        for run in waiting.iter().filter_map(|waiting| waiting.ticket.run.clone()) {
            self.end_run(&run);
        }
        let followers = self.runs.end_with(|waiting| waiting.ticket.lane == lane);
        self.finished.extend(waiting.into_iter().chain(followers).map(released));
    }

    fn release_waiting(&mut self) {
        let waiting = self.lanes.iter_mut().flat_map(|lane| lane.queue.drain(..));
        self.finished.extend(waiting.chain(self.runs.end_all()).map(released));
    }

    pub(crate) fn is_called_off(&self, place: usize) -> bool {
        self.places[place].is_called_off()
    }
}

fn released(Waiting { ticket, .. }: Waiting) -> Finished {
    Finished { ticket, outcome: Outcome::Release }
}

impl Place {
    fn put(&mut self, Waiting { ticket, message, .. }: Waiting) -> Job {
        let route = ticket.route.clone();
        *self = Self::At(Slot { ticket, order: None });
        Job::One(message, route)
    }

    fn fill(&mut self, waiting: impl Iterator<Item = Waiting>) -> Job {
        let mut messages = Vec::new();
        let slots: Vec<_> = waiting
            .map(|Waiting { ticket, message, .. }| {
                messages.push(message);
                Slot { ticket, order: None }
            })
            .collect();
        let route = slots.first().map_or(Route::Own(0), |slot| slot.ticket.route.clone());
        *self = Self::AtBatch(slots);
        Job::Batch(messages, route)
    }
}

// leases
impl Held {
    /// The leases to renew. Of what is being settled, only what takes longer than `patience`: settling and
    /// renewing at once would wait for each other.
    pub(crate) fn leases(&self, now: Instant, patience: Duration) -> Vec<Lease> {
        let waiting = self.lanes.iter().flat_map(|lane| &lane.queue).chain(self.runs.followers());
        let waiting = waiting.map(|waiting| waiting.ticket.lease);
        let slots = self.places.iter().flat_map(Place::slots);
        let at_work = slots.filter(|slot| slot.order.is_none()).map(|slot| slot.ticket.lease);
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
        let mut tickets = self.lose_waiting(&is_lost);
        let mut places = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            let slots = place.slots_mut().iter_mut();
            let lost = slots.filter(|slot| slot.order.is_none() && is_lost(&slot.ticket.lease));
            let n_before = tickets.len();
            tickets.extend(lost.map(|slot| {
                slot.order = Some(Order::Lost);
                slot.ticket.clone()
            }));
            if tickets.len() > n_before {
                places.push(index);
            }
        }
        for ticket in &tickets {
            if let Some(run) = &ticket.run {
                self.end_run(run);
            }
        }
        self.report.n_lease_lost += tickets.len() as u64;
        (tickets, places)
    }

    fn lose_waiting(&mut self, is_lost: &impl Fn(&Lease) -> bool) -> Vec<Ticket> {
        let is_lost = |waiting: &Waiting| is_lost(&waiting.ticket.lease);
        let mut lost = self.runs.lose(is_lost);
        for lane in &mut self.lanes {
            let (gone, kept): (Vec<_>, _) = mem::take(&mut lane.queue).into_iter().partition(is_lost);
            lane.queue = kept.into();
            lost.extend(gone);
        }
        let tickets: Vec<_> = lost.into_iter().map(|waiting| waiting.ticket).collect();
        tickets.iter().for_each(|ticket| self.drop_ticket(ticket));
        tickets
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
    pub(crate) fn settled(
        &mut self,
        batch: &[Finished],
        answers: &[Settled],
        uncertain: bool,
        now: Instant,
    ) -> Calls {
        for (Finished { ticket, outcome }, answer) in batch.iter().zip(answers) {
            self.drop_ticket(ticket);
            self.report.count(outcome, *answer, uncertain);
            if let Some(run) = &ticket.run {
                // the next ones of the key were not claimable until now
                self.should_look = true;
                if *answer == Settled::LeaseLost && !uncertain {
                    self.end_run(run);
                }
            }
        }
        self.settling.clear();
        self.settling_since = None;
        Calls { claim_loop: self.is_loop_called(now), settler: false, starter: false }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.is_idle() && self.finished.is_empty() && self.settling.is_empty()
    }

    pub(crate) fn await_settled(&mut self) {
        self.awaits_settled = true;
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
            for slot in place.slots_mut() {
                slot.order.get_or_insert(Order::GiveBack);
                places.push(index);
            }
        }
        places.dedup();
        places
    }

    /// The numbers of the run; what is still held counts as unsettled.
    pub(crate) fn report(&self) -> Report {
        let slots = self.places.iter().flat_map(Place::slots);
        let n_at_work = slots.filter(|slot| slot.order != Some(Order::Lost)).count();
        let n_held = n_at_work + self.n_waiting() + self.finished.len() + self.settling.len();
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
