//! Shares what is held between the claim loop, the workers, the settler and the heartbeat.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outbox_core::{Claim, Error, Lease, Message, Outcome, Settled};
use tokio::sync::Notify;
use tokio::task::coop::consume_budget;
use tokio::time::Instant;

use crate::decision::{Ending, Policy, decide};
use crate::handler::{self, TimeLimit};
use crate::held::{Calls, Ended, Finished, Held, Job, Outcomes, Room, Ticket};
use crate::observer::Observers;
use crate::plan::Plan;
use crate::router::{Route, Router, Service};
use crate::timer::Timer;
use crate::{Config, Event, Report};

pub(crate) struct Desk {
    pub(crate) router: Arc<Router>,
    pub(crate) config: Config,
    pub(crate) observers: Observers,
    plan: Plan,
    policy: Policy,
    held: Mutex<Held>,
    /// While an observer is told how many lanes pause.
    telling: Mutex<()>,
    failure: Mutex<Option<Error>>,
    claim_loop: Notify,
    settler: Notify,
    starter: Notify,
    /// One per place: look whether your handler is called off.
    places: Vec<Notify>,
}

impl Desk {
    pub(crate) fn new(router: Arc<Router>, plan: Plan, config: Config, observers: Observers) -> Self {
        Self {
            policy: Policy { max_attempts: config.max_attempts, backoff: config.backoff.clone() },
            held: Mutex::new(Held::new(&config, &plan, Instant::now())),
            telling: Mutex::default(),
            failure: Mutex::default(),
            claim_loop: Notify::new(),
            settler: Notify::new(),
            starter: Notify::new(),
            places: (0..config.concurrency).map(|_| Notify::new()).collect(),
            router,
            plan,
            config,
            observers,
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, calls: Calls) {
        if calls.claim_loop {
            self.claim_loop.notify_one();
        }
        if calls.settler {
            self.settler.notify_one();
        }
        if calls.starter {
            self.starter.notify_one();
        }
    }

    fn topic<'a>(&'a self, ticket: &'a Ticket) -> &'a str {
        self.router.topic(&ticket.route)
    }
}

// for the claim loop
impl Desk {
    pub(crate) fn begin_round(&self) {
        self.held().begin_round();
    }

    pub(crate) fn room(&self, lane: usize) -> Room {
        self.held().room(lane, Instant::now())
    }

    pub(crate) fn room_beside(&self, lane: usize, n_coming: usize) -> Room {
        self.held().room_beside(lane, n_coming, Instant::now())
    }

    /// Waits until something has changed that the loop waits for.
    pub(crate) async fn changed(&self) {
        self.claim_loop.notified().await;
    }

    pub(crate) fn call_claim_loop(&self) {
        self.claim_loop.notify_one();
    }

    /// Takes over what a claim for `lane` brought; returns the places whose workers are to be started.
    pub(crate) fn accept(&self, lane: usize, claim: Claim, is_full: bool) -> Vec<usize> {
        self.emit_claim(&claim);
        if claim.recovered {
            let lost = self.held().lose_returned(&claim.messages);
            self.call_off(lost);
        }
        let now = Instant::now();
        let find = |topic: &str| {
            let route = self.router.find(topic);
            let lane = self.plan.lane(&route);
            (route, lane)
        };
        let mut held = self.held();
        if let Some(due_in) = claim.next_due_in {
            held.note_due(now + due_in.min(self.config.poll_interval.max(self.config.max_poll)));
        }
        let (places, calls) = held.accept(lane, claim, is_full, now, find);
        drop(held);
        // whoever was called while the claim was under way is answered by the next one
        self.call(Calls { claim_loop: false, ..calls });
        places
    }

    fn emit_claim(&self, claim: &Claim) {
        if !claim.is_empty() {
            let Claim { n_dead, recovered, .. } = *claim;
            self.observers.emit(&Event::Claimed { n_messages: claim.messages.len(), n_dead, recovered });
        }
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.held().due()
    }

    pub(crate) fn take_look(&self) -> bool {
        self.held().take_look()
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.held().is_settled()
    }

    /// Waits until nothing is held.
    ///
    /// # Errors
    /// What the settler could not do.
    pub(crate) async fn all_settled(&self) -> Result<(), Error> {
        while !self.is_settled() {
            self.check_failure()?;
            self.held().await_settled();
            if !self.is_settled() {
                self.changed().await;
            }
        }
        Ok(())
    }

    pub(crate) fn check_failure(&self) -> Result<(), Error> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), Err)
    }
}

/// Works until nothing waits any more.
pub(crate) async fn work(desk: Arc<Desk>, place: usize) {
    let mut ended = None;
    loop {
        let now = Instant::now();
        let Some(job) = desk.step(place, ended.take(), now) else { return };
        ended = Some(desk.handle(place, job, now).await);
        consume_budget().await;
    }
}

// for the workers
impl Desk {
    fn step(&self, place: usize, ended: Option<Ended>, now: Instant) -> Option<Job> {
        let step = self.held().step(place, ended, now);
        self.call(step.calls);
        if let Some(route) = step.resumed {
            self.emit_paused(|n_paused| Event::Resumed { topic: self.router.topic(&route), n_paused });
        }
        step.next
    }

    async fn handle(&self, place: usize, job: Job, now: Instant) -> Ended {
        let limit = TimeLimit::starting(now, self.config.handler_timeout);
        match job {
            Job::One(message, route) => self.handle_one(place, message, route, limit).await,
            Job::Batch(messages, route) => self.handle_batch(place, messages, route, limit).await,
        }
    }

    async fn handle_one(&self, place: usize, message: Message, route: Route, limit: TimeLimit) -> Ended {
        let attempt = message.attempt;
        let timer = self.timer(&route, &message);
        let ending = match self.router.service(&route) {
            Some(Service::One(handler)) => {
                handler::run(&**handler, message, self.config.trace, limit, self.called_off(place)).await
            }
            _ => self.router.unrouted(message.topic),
        };
        timer.into_iter().for_each(|timer| timer.stop(ending.name()));
        self.note(&ending, &route);
        let opens = ending.opens();
        Ended { outcomes: Outcomes::One(self.decide(ending, attempt)), opens, route }
    }

    async fn handle_batch(
        &self,
        place: usize,
        messages: Vec<Message>,
        route: Route,
        limit: TimeLimit,
    ) -> Ended {
        let attempts: Vec<_> = messages.iter().map(|message| message.attempt).collect();
        let timers: Vec<_> = messages.iter().filter_map(|message| self.timer(&route, message)).collect();
        let endings = match self.router.service(&route) {
            Some(Service::Batch(_, handler)) => {
                handler::run_batch(&**handler, messages, limit, self.called_off(place)).await
            }
            _ => messages.into_iter().map(|message| self.router.unrouted(message.topic)).collect(),
        };
        for (timer, ending) in timers.into_iter().zip(&endings) {
            timer.stop(ending.name());
        }
        endings.iter().for_each(|ending| self.note(ending, &route));
        let opens = endings.iter().all(Ending::opens);
        let decided = endings.into_iter().zip(attempts).map(|(ending, attempt)| self.decide(ending, attempt));
        Ended { outcomes: Outcomes::Each(decided.collect()), opens, route }
    }

    /// For an observer that times handlers.
    fn timer<'a>(&'a self, route: &'a Route, message: &Message) -> Option<Timer<'a>> {
        let observers = &self.observers;
        observers.times_handlers().then(|| Timer::start(observers, self.router.topic(route), message))
    }

    /// Pauses when the downstream is gone.
    fn note(&self, ending: &Ending, route: &Route) {
        if let Ending::Failed { text, .. } = ending
            && ending.is_unavailable()
        {
            self.pause(route, text);
        }
    }

    fn decide(&self, ending: Ending, attempt: u32) -> Outcome {
        decide(ending, attempt, &self.policy, rand::random)
    }

    async fn called_off(&self, place: usize) {
        loop {
            self.places[place].notified().await;
            if self.held().is_called_off(place) {
                return;
            }
        }
    }

    fn pause(&self, route: &Route, error: &str) {
        let lane = self.plan.lane(route);
        let paused = self.held().pause(lane, Instant::now(), &self.config, rand::random());
        self.call(Calls { claim_loop: true, settler: true, starter: false });
        if let Some(pause) = paused {
            let topic = self.router.topic(route);
            self.emit_paused(|n_paused| Event::Paused { topic, pause, error, n_paused });
        }
    }

    /// One event at a time, with the number of lanes that pause by then: the last number that is told holds.
    fn emit_paused<'a>(&self, event: impl FnOnce(usize) -> Event<'a>) {
        let _one = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let n_paused = self.held().n_paused();
        self.observers.emit(&event(n_paused));
    }
}

// for the settler
impl Desk {
    pub(crate) async fn finished_some(&self) {
        self.settler.notified().await;
    }

    pub(crate) fn n_finished(&self) -> usize {
        self.held().n_finished()
    }

    pub(crate) fn is_settling_due(&self) -> bool {
        self.held().is_settling_due()
    }

    pub(crate) fn take_finished(&self) -> Vec<Finished> {
        self.held().take_finished(Instant::now())
    }

    /// Records the answers to a batch and tells the observer.
    pub(crate) fn settled(&self, batch: &[Finished], answers: &[Settled], uncertain: bool) {
        let due = batch.iter().filter_map(|finished| match finished.outcome {
            Outcome::Retry { after, .. } => Some(after),
            _ => None,
        });
        let due = due.min().map(|after| Instant::now() + after + clock_tolerance(after));
        let mut calls = {
            let mut held = self.held();
            if let Some(due) = due {
                held.note_due(due);
            }
            held.settled(batch, answers, uncertain, Instant::now())
        };
        // the loop may be asleep for longer
        calls.claim_loop |= due.is_some();
        self.call(calls);
        for (finished, answer) in batch.iter().zip(answers) {
            self.emit_settled(finished, *answer, uncertain);
        }
    }

    fn emit_settled(&self, Finished { ticket, outcome }: &Finished, answer: Settled, uncertain: bool) {
        let (id, topic, attempt) = (ticket.lease.id, self.topic(ticket), ticket.attempt);
        self.observers.emit(&match (answer, outcome) {
            (Settled::LeaseLost, _) if uncertain => Event::Unconfirmed { id, topic, attempt },
            (Settled::LeaseLost, _) => Event::LeaseLost { id, topic, attempt },
            (Settled::Applied, Outcome::Done) => Event::Delivered { id, topic, attempt },
            (Settled::Applied, Outcome::Retry { after, error }) => {
                Event::Retried { id, topic, attempt, after: *after, error }
            }
            (Settled::Applied, Outcome::Dead { error }) => Event::Dead { id, topic, attempt, error },
            (Settled::Applied, Outcome::Release) => Event::Released { id, topic },
        });
    }

    /// Tells whoever waits in [`all_settled`](Self::all_settled) that it may not come.
    pub(crate) fn fail(&self, error: Error) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.claim_loop.notify_one();
    }
}

/// The database's clock may go slower than ours: looking too early finds nothing.
fn clock_tolerance(after: Duration) -> Duration {
    after / 1_000 + Duration::from_millis(1)
}

// for the heartbeat
impl Desk {
    pub(crate) fn leases(&self) -> Vec<Lease> {
        self.held().leases(Instant::now(), self.config.heartbeat())
    }

    /// Drops the handlers whose lease is lost, and what waits with such a one.
    pub(crate) fn lose(&self, lost: &HashSet<Lease>) {
        let lost = self.held().lose(lost);
        self.call_off(lost);
    }

    fn call_off(&self, (tickets, places): (Vec<Ticket>, Vec<usize>)) {
        places.into_iter().for_each(|place| self.places[place].notify_one());
        for ticket in &tickets {
            let (id, topic, attempt) = (ticket.lease.id, self.topic(ticket), ticket.attempt);
            self.observers.emit(&Event::LeaseLost { id, topic, attempt });
        }
        if !tickets.is_empty() {
            self.call(Calls { claim_loop: true, settler: true, starter: false });
        }
    }
}

// for the starter
impl Desk {
    /// The places whose workers are to be started now, and when to look again.
    pub(crate) fn start_due(&self) -> (Vec<usize>, Option<Instant>) {
        self.held().start_due(Instant::now())
    }

    pub(crate) async fn start_called(&self) {
        self.starter.notified().await;
    }
}

// for the end
impl Desk {
    pub(crate) fn close(&self) {
        self.held().close();
        self.settler.notify_one();
    }

    pub(crate) fn give_back_running(&self) {
        let places = self.held().give_back_running();
        places.into_iter().for_each(|place| self.places[place].notify_one());
    }

    pub(crate) fn report(&self) -> Report {
        self.held().report()
    }
}
