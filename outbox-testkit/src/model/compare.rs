//! One sequence on both sides.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Claimed, Claimer, Context, DeadLetter, DeadLetterQuery, Declaration, Draft, Error,
    Lease, MemoryRepository, MessageId, Operations, Outcome, Prunable, Prune, Repository, Retention,
    Settlement, Stats, TopicStats, Transactions,
};
use tokio::time::sleep;

use super::op::{ClaimOp, End, Ending, N_CLAIMERS, N_TOPICS, Op, Sequence, Sketch, Topics};
use crate::OperationsHarness;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// After this pause a claim loop looks at everything again.
const PAUSE: Duration = Duration::from_millis(150);
const MAX_ATTEMPTS: u32 = 3;
/// With loops nothing runs out of attempts, because a claim does not say which messages it made dead.
const NO_LIMIT: u32 = 1_000_000;
const MAX_OPEN: usize = 4;
/// More than a sequence can make.
const MAX_DEAD: usize = 1_000;

type Difference = String;
type Compared<T = ()> = Result<T, Difference>;

/// A backend and the reference after the same calls.
///
/// In the reference each message has a topic of its own, its id. So the reference can be told to claim exactly
/// the messages that the backend's claim handed out, and refuses those that no claim may hand out now.
pub(crate) struct Comparison<'h, H: OperationsHarness> {
    harness: &'h H,
    reference: MemoryRepository,
    /// The handle that settles.
    settler: H::Repository,
    with_loops: bool,
    declared: Declaration,
    claimers: [Claimer; N_CLAIMERS],
    /// Every id ever drafted, with the number of its topic.
    messages: Vec<(MessageId, usize)>,
    /// Every lease ever given: the backend's and the reference's.
    leases: Vec<(Lease, Lease)>,
    open: Vec<Open>,
    n_opened: usize,
}

/// A transaction on either side.
struct Open {
    ours: Context,
    reference: Context,
}

fn agree<T: PartialEq + Debug>(what: &str, ours: T, reference: T) -> Compared {
    if ours == reference {
        return Ok(());
    }
    Err(format!("{what}: the backend says {ours:?}, the reference {reference:?}"))
}

fn answered<T>(what: &str, answer: Result<T, Error>) -> Compared<T> {
    answer.map_err(|error| format!("{what} failed: {error:?}"))
}

fn topic(number: usize) -> String {
    format!("topic-{number}")
}

impl<'h, H: OperationsHarness> Comparison<'h, H> {
    /// The harness's table is declared so.
    pub(crate) fn new(harness: &'h H, declared: &Declaration, sequence: &Sequence) -> Self {
        let keeping = harness.keeping().filter(|_| sequence.keeps);
        let retention = if keeping.is_some() { Retention::Keep } else { Retention::Delete };
        Self {
            harness,
            reference: MemoryRepository::new().declared(declared.clone()).with_retention(retention),
            settler: keeping.unwrap_or_else(|| harness.repository().clone()),
            with_loops: sequence.with_loops,
            declared: declared.clone(),
            claimers: Default::default(),
            messages: Vec::new(),
            leases: Vec::new(),
            open: Vec::new(),
            n_opened: 0,
        }
    }

    pub(crate) async fn run(mut self, sequence: &Sequence) -> Compared {
        for (number, op) in sequence.ops.iter().enumerate() {
            self.apply(op).await.map_err(|difference| format!("call {}: {difference}", number + 1))?;
        }
        self.wind_up().await.map_err(|difference| format!("after the last call: {difference}"))
    }

    async fn apply(&mut self, op: &Op) -> Compared {
        match op {
            Op::Enqueue { sketches, end } => self.enqueue(sketches, *end).await,
            Op::EndOpen { which, commit } => self.end_open(*which, *commit).await,
            Op::Repeat { which } => self.repeat(*which).await,
            Op::Claim(claim) if self.with_loops => self.claim_with_loops(claim).await,
            Op::Claim(claim) => self.claim_alone(claim).await.map(drop),
            Op::CatchUp { claimer, topics } if self.with_loops => self.catch_up(*claimer, *topics).await,
            Op::CatchUp { .. } => Ok(()),
            Op::Settle(endings) => self.settle(endings).await,
            Op::Extend { which, hours } => self.extend(which, *hours).await,
            Op::Advance { half_hours } => {
                self.advance(HOUR / 2 * *half_hours as u32).await;
                Ok(())
            }
            Op::Redrive { which } => self.redrive(*which).await,
            Op::Discard { which } => self.discard(*which).await,
            Op::History { which } => self.history(*which).await,
            Op::Prune { what, half_hours } => self.prune(*what, HOUR / 2 * *half_hours).await,
            Op::Stats => self.stats().await,
            Op::DeadLetters => self.dead_letters().await,
        }
    }

    async fn advance(&self, by: Duration) {
        self.harness.advance(by).await;
        self.reference.advance(by);
    }

    /// Keeps two calls that set a due time apart, also on a clock that counts milliseconds.
    async fn set_apart(&self) {
        self.advance(MINUTE).await;
    }

    // ---- enqueue

    async fn enqueue(&mut self, sketches: &[Sketch], end: End) -> Compared {
        let may_stay_open =
            self.with_loops && self.harness.capabilities().concurrent_writers && self.open.len() < MAX_OPEN;
        let end = if end == End::LeaveOpen && !may_stay_open { End::Commit } else { end };
        let drafts: Vec<_> = sketches.iter().map(|sketch| self.draft(sketch, end)).collect();
        let open = self.begin(drafts).await?;
        match end {
            End::LeaveOpen => self.leave_open(open),
            End::Commit => self.end(open, true).await?,
            End::RollBack => self.end(open, false).await?,
        }
        self.set_apart().await;
        Ok(())
    }

    /// A delay and the time of a deduplication key count from the call, and the clock of an open transaction's rows does
    /// not move with the others: so what stays open has neither. Transactions that are open at the same time have no
    /// order: what stays open has keys of its own.
    fn draft(&mut self, sketch: &Sketch, end: End) -> Draft {
        let mut draft = Draft::new(topic(sketch.topic), vec![b'x'; sketch.bytes]);
        draft.key = sketch.key.map(|key| format!("key-{key}"));
        if end == End::LeaveOpen {
            draft.key = draft.key.map(|key| format!("{key} of transaction {}", self.n_opened));
        } else {
            draft.delay = HOUR * sketch.delay_hours as u32;
            let has_keys = self.harness.capabilities().dedup_keys;
            draft.dedup_key = sketch.dedup_key.filter(|_| has_keys).map(|key| format!("once-{key}"));
        }
        self.messages.push((draft.id, sketch.topic));
        draft
    }

    async fn begin(&self, drafts: Vec<Draft>) -> Compared<Open> {
        let ours = answered("begin", self.harness.repository().begin().await)?;
        let reference = answered("begin", self.reference.begin().await)?;
        let twins = drafts.iter().map(twin).collect();
        let answer = self.harness.repository().enqueue(&ours, drafts).await.map_err(|error| error.kind());
        let expected = self.reference.enqueue(&reference, twins).await.map_err(|error| error.kind());
        agree("enqueue", answer, expected)?;
        Ok(Open { ours, reference })
    }

    fn leave_open(&mut self, open: Open) {
        self.open.push(open);
        self.n_opened += 1;
    }

    async fn end(&self, open: Open, commit: bool) -> Compared {
        if commit {
            answered("commit", self.harness.repository().commit(open.ours).await)?;
            answered("commit", self.reference.commit(open.reference).await)
        } else {
            answered("rollback", self.harness.repository().rollback(open.ours).await)?;
            answered("rollback", self.reference.rollback(open.reference).await)
        }
    }

    async fn end_open(&mut self, which: usize, commit: bool) -> Compared {
        if self.open.is_empty() {
            return Ok(());
        }
        let open = self.open.remove(which % self.open.len());
        self.end(open, commit).await
    }

    async fn repeat(&mut self, which: usize) -> Compared {
        let Some((id, number)) = pick(&self.messages, which) else { return Ok(()) };
        // also the id of a message that was deleted a moment ago may wait for its neighbours in an index (InnoDB)
        if !self.open.is_empty() {
            return Ok(());
        }
        // it may be the id of a message that has ended, which is free there and not in the reference
        if !self.harness.capabilities().ended_ids {
            return Ok(());
        }
        let open = self.begin(vec![Draft::new(topic(number), "again").id(id)]).await?;
        self.end(open, true).await
    }

    // ---- claim

    fn request(&self, claim: &ClaimOp) -> ClaimRequest {
        let mut request = ClaimRequest::new(claim.limit, HOUR * claim.lease_hours as u32);
        request.max_bytes = claim.max_bytes;
        request.recover = claim.recover;
        request.topics = named(claim.topics).map(|numbers| numbers.into_iter().map(topic).collect());
        request.max_attempts = if self.with_loops { NO_LIMIT } else { MAX_ATTEMPTS };
        request
    }

    /// The request to the reference for these topics.
    fn twin_request(&self, request: &ClaimRequest, topics: Topics) -> ClaimRequest {
        let served = named(topics).map(|numbers| {
            let ids = self.messages.iter().filter(|(_, number)| numbers.contains(number));
            ids.map(|(id, _)| *id).collect::<Vec<_>>()
        });
        let mut twin = request.clone();
        twin.topics = served.map(|ids| twin_topics(&ids));
        twin
    }

    /// A claim that continues none, and whose answer tells all.
    async fn claim_alone(&mut self, claim: &ClaimOp) -> Compared<Claim> {
        match self.declared.is_plain() {
            true => self.claim_exactly(claim).await,
            false => self.claim_by_rule(claim).await,
        }
    }

    async fn claim_exactly(&mut self, claim: &ClaimOp) -> Compared<Claim> {
        let request = self.request(claim);
        let twin = self.twin_request(&request, claim.topics);
        let ours = answered("claim", self.harness.repository().claim(request).await)?;
        let reference = answered("claim", self.reference.claim(twin).await)?;
        agree("recovered", ours.recovered, reference.recovered)?;
        agree("messages of the claim", self.brief(&ours.messages), self.brief(&reference.messages))?;
        agree("number of messages made dead", ours.n_dead, reference.n_dead)?;
        self.remember(&ours.messages, &reference.messages)?;
        self.compare_timers(claim, &ours, &reference)?;
        Ok(ours)
    }

    /// The messages by the order in which the sequence drafted them.
    fn brief(&self, messages: &[Claimed]) -> Vec<String> {
        let number = |id| self.messages.iter().position(|(known, _)| *known == id);
        let brief = |claimed: &Claimed| match number(claimed.message.id) {
            Some(number) => format!("message {number} attempt {}", claimed.message.attempt),
            None => format!("unknown message {}", claimed.message.id),
        };
        messages.iter().map(brief).collect()
    }

    fn compare_timers(&self, claim: &ClaimOp, ours: &Claim, reference: &Claim) -> Compared {
        let is_exact = claim.topics.is_none() && claim.recover;
        if !self.harness.capabilities().timers || !ours.is_empty() || !is_exact {
            return Ok(());
        }
        let minutes = |timer: Option<Duration>| timer.map(|timer| (timer.as_secs() + 30) / 60);
        agree(
            "minutes until the next message is due",
            minutes(ours.next_due_in),
            minutes(reference.next_due_in),
        )
    }

    fn remember(&mut self, ours: &[Claimed], reference: &[Claimed]) -> Compared {
        for (ours, reference) in ours.iter().zip(reference) {
            let whole = |claimed: &Claimed| {
                let message = &claimed.message;
                (message.key.clone(), message.payload.clone(), message.headers.clone())
            };
            agree("content of a message", whole(ours), whole(reference))?;
            self.leases.push((ours.lease, reference.lease));
        }
        Ok(())
    }

    /// Where it is open which messages come first, those that come must be allowed to, and what does not fill the
    /// claim must be all there is.
    async fn claim_by_rule(&mut self, claim: &ClaimOp) -> Compared<Claim> {
        let request = self.request(claim);
        let ours = self.follow(request.clone()).await?;
        // what it has made dead may have freed others
        let is_whole = request.max_bytes.is_none() && !ours.recovered && ours.n_dead == 0;
        if ours.messages.len() < request.limit && is_whole {
            let twin = self.twin_request(&request, claim.topics);
            let taken = self.brief(&ours.messages);
            self.nothing_left(&format!("left behind by a claim that was not full and has {taken:?}"), twin)
                .await?;
        }
        Ok(ours)
    }

    async fn nothing_left(&self, what: &str, request: ClaimRequest) -> Compared {
        let left = answered("claim", self.reference.claim(request).await)?;
        agree(what, (Vec::new(), 0), (self.brief(&left.messages), left.n_dead))
    }

    /// Loops do not recover: their plans for expired leases do not follow a clock that jumps.
    async fn claim_with_loops(&mut self, claim: &ClaimOp) -> Compared {
        let mut request = self.request(claim);
        if let Some(claimer) = claim.claimer {
            request.recover = false;
            request = request.with_claimer(self.claimers[claimer].clone());
        }
        self.follow(request).await.map(drop)
    }

    /// Claims on the backend, and the same messages on the reference.
    async fn follow(&mut self, request: ClaimRequest) -> Compared<Claim> {
        let ours = answered("claim", self.harness.repository().claim(request.clone()).await)?;
        check_bounds(&request, &ours)?;
        let ids: Vec<_> = ours.messages.iter().map(|claimed| claimed.message.id).collect();
        let taken: Vec<_> = ids.iter().copied().chain(self.buried_by(&ours).await?).collect();
        let mut twin = request.with_topics(twin_topics(&taken));
        (twin.max_bytes, twin.claimer) = (None, None);
        let mut reference = answered("claim", self.reference.claim(twin).await)?;
        self.compare_runs(&ours.messages, &reference.messages)?;
        let place = |claimed: &Claimed| ids.iter().position(|id| *id == claimed.message.id);
        reference.messages.sort_by_key(place);
        agree(
            "claimed, of which the reference finds claimable",
            self.brief(&ours.messages),
            self.brief(&reference.messages),
        )?;
        agree("number of messages made dead", ours.n_dead, reference.n_dead)?;
        self.remember(&ours.messages, &reference.messages)?;
        Ok(ours)
    }

    /// The messages that a claim made dead: it does not say which.
    async fn buried_by(&self, claim: &Claim) -> Compared<Vec<MessageId>> {
        if claim.n_dead == 0 {
            return Ok(Vec::new());
        }
        let [ours, known] = self.all_dead_letters().await?;
        let is_new = |letter: &&DeadLetter| known.iter().all(|known| known.message.id != letter.message.id);
        Ok(ours.iter().filter(is_new).map(|letter| letter.message.id).collect())
    }

    /// The messages of each key come in their order, where there is one.
    fn compare_runs(&self, ours: &[Claimed], reference: &[Claimed]) -> Compared {
        if self.declared.ordered.is_none() {
            return Ok(());
        }
        let runs = |claimed: &[Claimed]| {
            let mut runs = BTreeMap::<String, Vec<Claimed>>::new();
            for claimed in claimed {
                let Some(key) = claimed.message.key.clone() else { continue };
                runs.entry(key).or_default().push(claimed.clone());
            }
            runs.into_iter().map(|(key, run)| (key, self.brief(&run))).collect::<Vec<_>>()
        };
        agree("runs of the keys", runs(ours), runs(reference))
    }

    async fn catch_up(&mut self, claimer: usize, topics: Topics) -> Compared {
        sleep(PAUSE).await;
        self.advance(Duration::from_millis(200)).await;
        let claim = ClaimOp {
            limit: 7,
            topics,
            max_bytes: None,
            lease_hours: 2,
            recover: false,
            claimer: Some(claimer),
        };
        let request = self.request(&claim).with_recover(false).with_claimer(self.claimers[claimer].clone());
        while !self.follow(request.clone()).await?.is_empty() {}
        let twin = self.twin_request(&self.request(&claim), topics);
        self.nothing_left("missed by the loop", twin).await
    }

    // ---- settle and extend

    async fn settle(&mut self, endings: &[(usize, Ending)]) -> Compared {
        let is_plain = self.declared.is_plain();
        let mut arrivals = Vec::new();
        let chosen = endings.iter().filter_map(|(which, ending)| {
            let ending = if is_plain { apart(*ending, &mut arrivals) } else { *ending };
            Some((pick(&self.leases, *which)?, outcome(ending)))
        });
        let (ours, reference): (Vec<_>, Vec<_>) = chosen
            .map(|((ours, reference), outcome)| {
                (Settlement::new(ours, outcome.clone()), Settlement::new(reference, outcome))
            })
            .unzip();
        let answers = answered("settle", self.settler.settle(ours).await)?;
        let expected = answered("settle", self.reference.settle(reference).await)?;
        self.set_apart().await;
        agree("settled", answers, expected)
    }

    async fn extend(&self, which: &[usize], hours: u64) -> Compared {
        let chosen = which.iter().filter_map(|which| pick(&self.leases, *which));
        let (ours, reference): (Vec<_>, Vec<_>) = chosen.unzip();
        let by = HOUR * hours as u32;
        let answers = answered("extend", self.harness.repository().extend(ours, by).await)?;
        let expected = answered("extend", self.reference.extend(reference, by).await)?;
        agree("extended", answers, expected)
    }

    // ---- operations

    async fn redrive(&self, which: usize) -> Compared {
        let Some((id, _)) = pick(&self.messages, which) else { return Ok(()) };
        let answer = answered("redrive", self.harness.operations().redrive(vec![id]).await)?;
        agree("redriven", answer, answered("redrive", self.reference.redrive(vec![id]).await)?)
    }

    async fn discard(&self, which: usize) -> Compared {
        let Some((id, _)) = pick(&self.messages, which) else { return Ok(()) };
        let answer = answered("discard", self.harness.operations().discard(vec![id]).await)?;
        agree("discarded", answer, answered("discard", self.reference.discard(vec![id]).await)?)
    }

    async fn history(&self, which: usize) -> Compared {
        let Some((id, _)) = pick(&self.messages, which) else { return Ok(()) };
        let [ours, reference] = [
            answered("history", self.harness.operations().history(id).await)?,
            answered("history", self.reference.history(id).await)?,
        ]
        .map(|history| history.into_iter().map(|failed| (failed.attempt, failed.error)).collect::<Vec<_>>());
        agree("history", ours, reference)
    }

    async fn prune(&self, what: Prunable, older_than: Duration) -> Compared {
        let mut prune = Prune::done(older_than);
        prune.what = what;
        let ours = answered("prune", self.harness.operations().prune(prune.clone()).await)?;
        agree("pruned", ours, answered("prune", self.reference.prune(prune).await)?)
    }

    async fn stats(&self) -> Compared {
        let ours = answered("stats", self.harness.operations().stats().await)?;
        let reference = self.by_topic(answered("stats", self.reference.stats().await)?);
        let counts = |stats: Stats| -> BTreeMap<_, _> {
            stats.topics.into_iter().map(|(topic, stats)| (topic, self.countable(stats))).collect()
        };
        agree("stats", counts(ours), counts(reference))
    }

    /// To the minute, which no call takes and the clock's jumps exceed. Rows of a transaction that was left open do
    /// not jump.
    fn countable(&self, stats: TopicStats) -> TopicStats {
        let minutes = |age: Duration| if self.with_loops { 0 } else { (age.as_secs() + 30) / 60 };
        TopicStats { oldest_due: stats.oldest_due.map(|age| MINUTE * minutes(age) as u32), ..stats }
    }

    /// Puts the reference's messages under the topics that they have on the backend.
    fn by_topic(&self, stats: Stats) -> Stats {
        let number = |id: &str| self.messages.iter().find(|(known, _)| known.to_string() == id);
        let mut topics = BTreeMap::<String, BTreeMap<String, TopicStats>>::new();
        for (id, stats) in stats.topics {
            let name = number(&id).map_or(id.clone(), |(_, number)| topic(*number));
            topics.entry(name).or_default().insert(id, stats);
        }
        Stats::new(topics.into_iter().map(|(name, stats)| (name, Stats::new(stats).total())).collect())
    }

    async fn dead_letters(&self) -> Compared {
        let [ours, reference] = self.all_dead_letters().await?.map(|letters| {
            let letter = |letter: DeadLetter| {
                (letter.message.id, letter.message.attempt, letter.error, letter.message.payload)
            };
            let mut letters: Vec<_> = letters.into_iter().map(letter).collect();
            // a storage that does not number renewed rows anew lists by the first number
            letters.sort();
            letters
        });
        agree("dead letters", ours, reference)
    }

    /// The backend's and the reference's.
    async fn all_dead_letters(&self) -> Compared<[Vec<DeadLetter>; 2]> {
        let query = DeadLetterQuery::new(MAX_DEAD);
        let ours = answered("dead letters", self.harness.operations().dead_letters(query.clone()).await)?;
        let reference = answered("dead letters", self.reference.dead_letters(query).await)?;
        Ok([ours.letters, reference.letters])
    }

    // ---- the end

    /// Everything is delivered or dead, on both sides alike.
    async fn wind_up(&mut self) -> Compared {
        for open in std::mem::take(&mut self.open) {
            self.end(open, true).await?;
        }
        self.advance(48 * HOUR).await;
        self.stats().await?;
        for _ in 0..1_000 {
            let from = self.leases.len();
            if self.claim_on().await? {
                self.stats().await?;
                return self.dead_letters().await;
            }
            let all: Vec<_> = (from..self.leases.len()).map(|which| (which, Ending::Done)).collect();
            self.settle(&all).await?;
        }
        Err("the table does not become empty".into())
    }

    /// One claim of what is left; whether nothing is.
    async fn claim_on(&mut self) -> Compared<bool> {
        let claim = ClaimOp {
            limit: 20,
            topics: None,
            max_bytes: None,
            lease_hours: 1,
            recover: true,
            claimer: None,
        };
        if !self.with_loops {
            return Ok(self.claim_alone(&claim).await?.is_empty());
        }
        let request = self.request(&claim);
        if !self.follow(request.clone()).await?.is_empty() {
            return Ok(false);
        }
        self.nothing_left("never delivered", request).await?;
        Ok(true)
    }
}

fn pick<T: Copy>(all: &[T], which: usize) -> Option<T> {
    all.get(which.checked_rem(all.len())?).copied()
}

fn twin(draft: &Draft) -> Draft {
    let mut twin = draft.clone();
    twin.topic = draft.id.to_string();
    twin
}

/// The topics of these messages in the reference. A claim must name one, so none is a topic that nobody has.
fn twin_topics(ids: &[MessageId]) -> Vec<String> {
    match ids {
        [] => vec!["none".into()],
        ids => ids.iter().map(ToString::to_string).collect(),
    }
}

/// The numbers of the named topics; the first where none is, since a claim must name one.
fn named(topics: Topics) -> Option<Vec<usize>> {
    let topics = topics?;
    let named: Vec<_> = (0..N_TOPICS).filter(|number| topics[*number]).collect();
    Some(if named.is_empty() { vec![0] } else { named })
}

fn check_bounds(request: &ClaimRequest, claim: &Claim) -> Compared {
    let bytes: usize = claim.messages.iter().map(|claimed| claimed.message.payload.len()).sum();
    let n = claim.messages.len();
    if n > request.limit {
        return Err(format!("{n} messages for a limit of {}", request.limit));
    }
    if n > 1 && request.max_bytes.is_some_and(|max| bytes as u64 > max) {
        return Err(format!("{bytes} bytes for a limit of {:?}", request.max_bytes));
    }
    if claim.recovered && (request.claimer.is_some() || !request.recover) {
        return Err("recovered what it was told not to".into());
    }
    let is_served = |topic| request.topics.as_ref().is_none_or(|topics| topics.contains(topic));
    match claim.messages.iter().find(|claimed| !is_served(&claimed.message.topic)) {
        None => Ok(()),
        Some(other) => Err(format!("{} was not asked for", other.message.topic)),
    }
}

/// Messages that one call makes claimable at the same time have no defined order: only the first is.
fn apart(ending: Ending, arrivals: &mut Vec<Ending>) -> Ending {
    if matches!(ending, Ending::Done | Ending::Dead) {
        return ending;
    }
    if arrivals.contains(&ending) {
        return Ending::Done;
    }
    arrivals.push(ending);
    ending
}

fn outcome(ending: Ending) -> Outcome {
    match ending {
        Ending::Done => Outcome::Done,
        Ending::Retry { hours } => Outcome::Retry { after: HOUR * hours as u32, error: "refused".into() },
        Ending::Dead => Outcome::Dead { error: "beyond help".into() },
        Ending::Release => Outcome::Release,
    }
}
