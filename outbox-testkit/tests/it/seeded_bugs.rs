//! The proof that the cases can fail: a bug each, and the case that finds it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use outbox_core::{
    Claim, ClaimRequest, Context, DeadLetterFilter, Declaration, Draft, Lease, Mark, Marked, MessageId,
    Moved, OnDead, Operations, Outcome, ProcessedStore, Prunable, Prune, Repository, RepositoryExt, Result,
    Settled, Settlement, Transactions,
};
use outbox_testkit::{cases, find_declared_difference, find_difference};

use crate::broken::{Broken, Bug, TRANSACTION};

/// Runs one case on the backend with the bug; it must fail.
fn finds<B: Bug>(name: &str) {
    let cases = cases!(Broken<B>: repository, operations, ordered, processed);
    let case = cases.iter().find(|case| case.name() == name).expect("a case of that name");
    let found = catch_unwind(AssertUnwindSafe(|| case.run())).is_err();
    assert!(found, "{name} passes on a backend that breaks its rule");
}

/// The model finds the bug too.
fn model_finds<B: Bug>() {
    let difference = find_difference::<Broken<B>>(2_000, 40).expect_err("the model must find the bug");
    println!("{difference}");
}

/// The model of an ordered table finds it; the one of a plain table need not.
fn ordered_model_finds<B: Bug>() {
    let declared = Declaration::new().ordered(OnDead::Block);
    let difference = find_declared_difference::<Broken<B>>(&declared, 2_000, 40);
    println!("{}", difference.expect_err("the model must find the bug"));
}

/// Settles by id alone: a stale lease settles what somebody else holds.
enum SettlesWithoutToken {}

impl Bug for SettlesWithoutToken {
    async fn settle(broken: &Broken<Self>, mut settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        for settlement in &mut settlements {
            settlement.lease = current(broken, settlement.lease);
        }
        broken.store.settle(settlements).await
    }
}

fn current<B>(broken: &Broken<B>, lease: Lease) -> Lease {
    broken.notes().leases.get(&lease.id).copied().unwrap_or(lease)
}

#[test]
fn settling_without_the_token_is_found() {
    finds::<SettlesWithoutToken>("settle::stale_token_changes_nothing");
    model_finds::<SettlesWithoutToken>();
}

/// Extends by id alone.
enum ExtendsWithoutToken {}

impl Bug for ExtendsWithoutToken {
    async fn extend(broken: &Broken<Self>, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        let leases = leases.into_iter().map(|lease| current(broken, lease)).collect();
        broken.store.extend(leases, by).await
    }
}

#[test]
fn extending_without_the_token_is_found() {
    finds::<ExtendsWithoutToken>("extend::lost_lease_is_not_extended");
    model_finds::<ExtendsWithoutToken>();
}

/// Counts an attempt when it is said to have failed: one that kills its process never counts.
enum CountsAtSettle {}

impl Bug for CountsAtSettle {
    async fn claim(broken: &Broken<Self>, request: ClaimRequest) -> Result<Claim> {
        let mut claim = broken.store.claim(request.with_max_attempts(u32::MAX)).await?;
        for claimed in &mut claim.messages {
            let n_failures = broken.notes().n_failures.get(&claimed.message.id).copied();
            claimed.message.attempt = n_failures.unwrap_or(0) + 1;
        }
        Ok(claim)
    }

    async fn settle(broken: &Broken<Self>, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        for settlement in &settlements {
            if matches!(settlement.outcome, Outcome::Retry { .. }) {
                *broken.notes().n_failures.entry(settlement.lease.id).or_default() += 1;
            }
        }
        broken.store.settle(settlements).await
    }
}

#[test]
fn counting_attempts_at_the_settlement_is_found() {
    finds::<CountsAtSettle>("claim::attempt_is_counted_by_the_claim");
    finds::<CountsAtSettle>("recovery::poison_message_does_not_kill_its_neighbours");
    model_finds::<CountsAtSettle>();
}

/// Leaves the limit to whoever settles.
enum IgnoresAttemptLimit {}

impl Bug for IgnoresAttemptLimit {
    async fn claim(broken: &Broken<Self>, request: ClaimRequest) -> Result<Claim> {
        broken.store.claim(request.with_max_attempts(u32::MAX)).await
    }
}

#[test]
fn handing_out_beyond_the_attempt_limit_is_found() {
    finds::<IgnoresAttemptLimit>("recovery::message_lost_in_its_last_attempt_is_dead");
    finds::<IgnoresAttemptLimit>("recovery::lowered_limit_applies_to_waiting_messages");
    model_finds::<IgnoresAttemptLimit>();
}

/// Takes twice as many as it may, as `IN (SELECT … LIMIT)` does under a nested loop.
enum ExceedsLimit {}

impl Bug for ExceedsLimit {
    async fn claim(broken: &Broken<Self>, mut request: ClaimRequest) -> Result<Claim> {
        request.validate()?;
        request.limit = (request.limit * 2).min(outbox_core::MAX_BATCH);
        broken.store.claim(request).await
    }
}

#[test]
fn exceeding_the_limit_is_found() {
    finds::<ExceedsLimit>("claim::limit_is_never_exceeded");
    model_finds::<ExceedsLimit>();
}

/// Hands messages out as RETURNING gives them: in no order.
enum ClaimsUnordered {}

impl Bug for ClaimsUnordered {
    async fn claim(broken: &Broken<Self>, request: ClaimRequest) -> Result<Claim> {
        let mut claim = broken.store.claim(request).await?;
        claim.messages.reverse();
        Ok(claim)
    }
}

#[test]
fn claiming_without_order_is_found() {
    finds::<ClaimsUnordered>("claim::messages_come_in_the_order_of_enqueueing");
    model_finds::<ClaimsUnordered>();
}

/// Waits for a reaper that nobody runs.
enum NeverRecovers {}

impl Bug for NeverRecovers {
    async fn claim(broken: &Broken<Self>, request: ClaimRequest) -> Result<Claim> {
        broken.store.claim(request.with_recover(false)).await
    }
}

#[test]
fn leases_that_never_expire_are_found() {
    finds::<NeverRecovers>("recovery::expired_lease_is_reclaimed");
    model_finds::<NeverRecovers>();
}

/// Fills a batch of recovered messages up with fresh ones.
enum MixesRecovered {}

impl Bug for MixesRecovered {
    async fn claim(broken: &Broken<Self>, mut request: ClaimRequest) -> Result<Claim> {
        let mut claim = broken.store.claim(request.clone()).await?;
        request.limit = request.limit.saturating_sub(claim.messages.len());
        if claim.recovered && request.limit > 0 {
            claim.messages.extend(broken.store.claim(request.with_recover(false)).await?.messages);
        }
        Ok(claim)
    }
}

#[test]
fn mixing_recovered_and_fresh_messages_is_found() {
    finds::<MixesRecovered>("recovery::recovered_messages_come_apart_from_fresh_ones");
    model_finds::<MixesRecovered>();
}

/// Recovers as many at once as the limit allows, whatever their attempt.
enum RecoversInOneGroup {}

impl Bug for RecoversInOneGroup {
    async fn claim(broken: &Broken<Self>, request: ClaimRequest) -> Result<Claim> {
        let max_attempts = request.max_attempts;
        let mut claim = broken.store.claim(request.with_max_attempts(u32::MAX)).await?;
        let messages = std::mem::take(&mut claim.messages);
        let is_spent = |claimed: &outbox_core::Claimed| claimed.message.attempt > max_attempts;
        let (spent, live): (Vec<_>, Vec<_>) = messages.into_iter().partition(is_spent);
        for claimed in &spent {
            let _ = broken.store.mark_dead(claimed.lease, "lease expired").await?;
        }
        claim.n_dead = spent.len();
        claim.recovered = claim.recovered && !live.is_empty();
        claim.messages = live;
        Ok(claim)
    }
}

#[test]
fn recovering_in_one_group_is_found() {
    finds::<RecoversInOneGroup>("recovery::poison_message_does_not_kill_its_neighbours");
    finds::<RecoversInOneGroup>("recovery::groups_shrink_towards_the_last_attempt");
    model_finds::<RecoversInOneGroup>();
}

/// Takes an attempt for what was never tried.
enum ReleaseKeepsAttempt {}

impl Bug for ReleaseKeepsAttempt {
    async fn settle(broken: &Broken<Self>, mut settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        for settlement in &mut settlements {
            if settlement.outcome == Outcome::Release {
                settlement.outcome = Outcome::Retry { after: Duration::ZERO, error: String::new() };
            }
        }
        broken.store.settle(settlements).await
    }
}

#[test]
fn release_that_keeps_the_attempt_is_found() {
    finds::<ReleaseKeepsAttempt>("settle::release_gives_the_attempt_back");
    model_finds::<ReleaseKeepsAttempt>();
}

/// Stores messages on a connection of its own.
enum EnqueuesApart {}

impl Bug for EnqueuesApart {
    async fn enqueue(broken: &Broken<Self>, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        broken.store.enqueue(cx, Vec::new()).await?;
        let own = broken.store.begin().await?;
        let ids = broken.store.enqueue(&own, drafts).await?;
        broken.store.commit(own).await?;
        Ok(ids)
    }
}

#[test]
fn enqueueing_outside_of_the_transaction_is_found() {
    finds::<EnqueuesApart>("transaction::rolled_back_message_never_exists");
    finds::<EnqueuesApart>("transaction::open_transaction_is_not_visible");
    model_finds::<EnqueuesApart>();
}

/// Checks and stores draft by draft: those before a bad one are stored.
enum ChecksOneByOne {}

impl Bug for ChecksOneByOne {
    async fn enqueue(broken: &Broken<Self>, cx: &Context, drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        let mut ids = Vec::new();
        for draft in drafts {
            ids.extend(broken.store.enqueue(cx, vec![draft]).await?);
        }
        Ok(ids)
    }
}

#[test]
fn checking_draft_by_draft_is_found() {
    finds::<ChecksOneByOne>("input::empty_topic_is_refused");
}

/// Keeps payloads as text.
enum StoresText {}

impl Bug for StoresText {
    async fn enqueue(broken: &Broken<Self>, cx: &Context, mut drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        for draft in &mut drafts {
            draft.payload = String::from_utf8_lossy(&draft.payload).into_owned().into();
        }
        broken.store.enqueue(cx, drafts).await
    }
}

#[test]
fn payloads_as_text_are_found() {
    finds::<StoresText>("enqueue::payload_is_byte_exact");
}

/// Takes the empty key for none.
enum DropsEmptyKeys {}

impl Bug for DropsEmptyKeys {
    async fn enqueue(broken: &Broken<Self>, cx: &Context, mut drafts: Vec<Draft>) -> Result<Vec<MessageId>> {
        for draft in &mut drafts {
            draft.key = draft.key.take().filter(|key| !key.is_empty());
        }
        broken.store.enqueue(cx, drafts).await
    }
}

#[test]
fn empty_keys_as_none_are_found() {
    finds::<DropsEmptyKeys>("enqueue::empty_key_is_not_no_key");
}

/// Claims whatever is next and looks at the topic later.
enum IgnoresTopics {}

impl Bug for IgnoresTopics {
    async fn claim(broken: &Broken<Self>, mut request: ClaimRequest) -> Result<Claim> {
        request.validate()?;
        request.topics = None;
        broken.store.claim(request).await
    }
}

#[test]
fn ignoring_the_topics_is_found() {
    finds::<IgnoresTopics>("claim::only_named_topics_are_claimed");
    model_finds::<IgnoresTopics>();
}

/// Bounds rows only.
enum IgnoresBytes {}

impl Bug for IgnoresBytes {
    async fn claim(broken: &Broken<Self>, mut request: ClaimRequest) -> Result<Claim> {
        request.max_bytes = None;
        broken.store.claim(request).await
    }
}

#[test]
fn ignoring_the_byte_limit_is_found() {
    finds::<IgnoresBytes>("claim::byte_limit_is_never_exceeded");
    model_finds::<IgnoresBytes>();
}

/// Reads behind the highest id it has seen, as an id cursor does: late commits are lost.
enum ReadsBehindCursor {}

impl Bug for ReadsBehindCursor {
    async fn claim(broken: &Broken<Self>, request: ClaimRequest) -> Result<Claim> {
        let continues = request.claimer.is_some();
        let mut claim = broken.store.claim(request).await?;
        if continues {
            let mut notes = broken.notes();
            claim.messages.retain(|claimed| claimed.message.id > notes.highest);
            let highest = claim.messages.iter().map(|claimed| claimed.message.id).max();
            notes.highest = highest.unwrap_or(notes.highest);
        }
        Ok(claim)
    }
}

#[test]
fn cursor_that_loses_late_commits_is_found() {
    finds::<ReadsBehindCursor>("claimer::late_commit_is_delivered");
    model_finds::<ReadsBehindCursor>();
}

/// Numbers attempts and calls it a fence: it falls on release.
enum FenceIsAttempt {}

impl Bug for FenceIsAttempt {
    async fn claim(broken: &Broken<Self>, request: ClaimRequest) -> Result<Claim> {
        let mut claim = broken.store.claim(request).await?;
        for claimed in &mut claim.messages {
            claimed.message.fence = i64::from(claimed.message.attempt);
        }
        Ok(claim)
    }
}

#[test]
fn fence_that_falls_is_found() {
    finds::<FenceIsAttempt>("claim::fence_rises_with_every_claim");
    finds::<FenceIsAttempt>("operations::redrive_keeps_the_fence");
}

/// Settles a batch in one transaction: one lost lease undoes the others.
enum SettlesAllOrNothing {}

impl Bug for SettlesAllOrNothing {
    async fn settle(broken: &Broken<Self>, settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        let leases = settlements.iter().map(|settlement| settlement.lease).collect();
        let held = broken.store.extend(leases, Duration::from_secs(3600)).await?;
        if held.contains(&Settled::LeaseLost) {
            return Ok(vec![Settled::LeaseLost; held.len()]);
        }
        broken.store.settle(settlements).await
    }
}

#[test]
fn settling_all_or_nothing_is_found() {
    finds::<SettlesAllOrNothing>("settle::lost_lease_touches_no_other");
    model_finds::<SettlesAllOrNothing>();
}

/// Lets the last of two settlements of one lease count.
enum LastSettlementCounts {}

impl Bug for LastSettlementCounts {
    async fn settle(broken: &Broken<Self>, mut settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        settlements.reverse();
        let mut settled = broken.store.settle(settlements).await?;
        settled.reverse();
        Ok(settled)
    }
}

#[test]
fn last_settlement_that_counts_is_found() {
    finds::<LastSettlementCounts>("settle::lease_named_twice_counts_once");
    model_finds::<LastSettlementCounts>();
}

/// Documents a backoff and retries at once.
enum RetriesAtOnce {}

impl Bug for RetriesAtOnce {
    async fn settle(broken: &Broken<Self>, mut settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        Settlement::validate(&settlements)?;
        for settlement in &mut settlements {
            if let Outcome::Retry { after, .. } = &mut settlement.outcome {
                *after = Duration::ZERO;
            }
        }
        broken.store.settle(settlements).await
    }
}

#[test]
fn retrying_at_once_is_found() {
    finds::<RetriesAtOnce>("settle::retry_waits_for_its_delay");
    model_finds::<RetriesAtOnce>();
}

/// Stores no reason.
enum LosesErrors {}

impl Bug for LosesErrors {
    async fn settle(broken: &Broken<Self>, mut settlements: Vec<Settlement>) -> Result<Vec<Settled>> {
        for settlement in &mut settlements {
            if let Outcome::Dead { error } = &mut settlement.outcome {
                error.clear();
            }
        }
        broken.store.settle(settlements).await
    }
}

#[test]
fn lost_error_texts_are_found() {
    finds::<LosesErrors>("operations::dead_letter_shows_message_and_error");
    model_finds::<LosesErrors>();
}

/// Adds to what is left of the lease.
enum ExtendsFromTheEnd {}

impl Bug for ExtendsFromTheEnd {
    async fn extend(broken: &Broken<Self>, leases: Vec<Lease>, by: Duration) -> Result<Vec<Settled>> {
        broken.store.extend(leases, by + by / 2).await
    }
}

#[test]
fn extending_from_the_end_is_found() {
    finds::<ExtendsFromTheEnd>("extend::extension_counts_from_now");
    model_finds::<ExtendsFromTheEnd>();
}

/// Says that every message moved.
enum MovesAnything {}

impl Bug for MovesAnything {
    async fn redrive(broken: &Broken<Self>, ids: Vec<MessageId>) -> Result<Vec<Moved>> {
        let moved = broken.store.redrive(ids).await?;
        Ok(vec![Moved::Applied; moved.len()])
    }
}

#[test]
fn redriving_what_is_not_dead_is_found() {
    finds::<MovesAnything>("operations::only_dead_letters_are_redriven");
    model_finds::<MovesAnything>();
}

/// Takes a message of an ordered key and hands out the one behind it only.
enum LosesHeads {}

impl Bug for LosesHeads {
    async fn claim(broken: &Broken<Self>, request: ClaimRequest) -> Result<Claim> {
        let mut claim = broken.store.claim(request).await?;
        let key = |claim: &Claim, n: usize| claim.messages.get(n)?.message.key.clone();
        if claim.ordered && key(&claim, 0).is_some() && key(&claim, 0) == key(&claim, 1) {
            claim.messages.remove(0);
        }
        Ok(claim)
    }
}

#[test]
fn handing_out_what_stands_behind_another_is_found() {
    finds::<LosesHeads>("ordered::run_of_a_key_comes_in_order");
    ordered_model_finds::<LosesHeads>();
}

/// Hands out the run of a key backwards.
enum ReversesRuns {}

impl Bug for ReversesRuns {
    async fn claim(broken: &Broken<Self>, request: ClaimRequest) -> Result<Claim> {
        let mut claim = broken.store.claim(request).await?;
        if claim.ordered {
            claim.messages.reverse();
        }
        Ok(claim)
    }
}

#[test]
fn runs_out_of_order_are_found() {
    finds::<ReversesRuns>("ordered::run_of_a_key_comes_in_order");
    ordered_model_finds::<ReversesRuns>();
}

/// Takes half of what it may.
enum ClaimsHalf {}

impl Bug for ClaimsHalf {
    async fn claim(broken: &Broken<Self>, mut request: ClaimRequest) -> Result<Claim> {
        request.validate()?;
        request.limit = request.limit.div_ceil(2);
        broken.store.claim(request).await
    }
}

#[test]
fn leaving_behind_what_a_claim_has_room_for_is_found() {
    ordered_model_finds::<ClaimsHalf>();
}

/// Looks whether the record is there and then makes one, with nothing that keeps it unique.
enum ChecksThenInserts {}

impl Bug for ChecksThenInserts {
    async fn mark_processed(broken: &Broken<Self>, cx: &Context, mark: Mark) -> Result<Marked> {
        let name = (mark.group.clone(), mark.id);
        if broken.notes().processed.contains(&name) {
            return broken.store.mark_processed(cx, mark).await;
        }
        tokio::task::yield_now().await;
        let transaction = cx.headers()[TRANSACTION].clone();
        broken.notes().marked.entry(transaction).or_default().push(name);
        Ok(Marked::First)
    }

    async fn commit(broken: &Broken<Self>, cx: Context) -> Result<()> {
        let transaction = cx.headers()[TRANSACTION].clone();
        for (group, id) in broken.notes().marked.remove(&transaction).unwrap_or_default() {
            broken.notes().processed.insert((group.clone(), id));
        }
        broken.store.commit(cx).await
    }
}

#[test]
fn inbox_that_checks_and_then_inserts_is_found() {
    finds::<ChecksThenInserts>("processed::concurrent_duplicate_waits_for_the_first");
}

/// Marks in a transaction of its own: a handler that fails is never tried again.
enum MarksApart {}

impl Bug for MarksApart {
    async fn mark_processed(broken: &Broken<Self>, _: &Context, mark: Mark) -> Result<Marked> {
        let own = broken.store.begin().await?;
        let marked = broken.store.mark_processed(&own, mark).await?;
        broken.store.commit(own).await?;
        Ok(marked)
    }
}

#[test]
fn inbox_that_marks_in_a_transaction_of_its_own_is_found() {
    finds::<MarksApart>("processed::rolled_back_mark_is_forgotten");
    finds::<MarksApart>("processed::mark_and_message_share_a_transaction");
}

/// Removes dead letters with the policy for what was delivered.
enum PrunesDeadLettersToo {}

impl Bug for PrunesDeadLettersToo {
    async fn prune(broken: &Broken<Self>, prune: Prune) -> Result<u64> {
        let mut dead = prune.clone();
        dead.what = Prunable::Dead;
        let n_dead = broken.store.prune(dead).await?;
        Ok(n_dead + broken.store.prune(prune).await?)
    }
}

#[test]
fn one_policy_for_done_and_dead_is_found() {
    finds::<PrunesDeadLettersToo>("retention::dry_run_removes_nothing");
    model_finds::<PrunesDeadLettersToo>();
}

/// Removes what is old, whether it has ended or not.
enum PrunesUnfinished {}

impl Bug for PrunesUnfinished {
    async fn prune(broken: &Broken<Self>, prune: Prune) -> Result<u64> {
        prune.validate()?;
        let claim = broken.store.claim(ClaimRequest::new(prune.limit, Duration::from_secs(60))).await?;
        for claimed in &claim.messages {
            let _ = broken.store.mark_done(claimed.lease).await?;
        }
        Ok(broken.store.prune(prune).await? + claim.messages.len() as u64)
    }
}

#[test]
fn pruning_unfinished_messages_is_found() {
    finds::<PrunesUnfinished>("retention::nothing_unfinished_is_pruned");
    model_finds::<PrunesUnfinished>();
}

/// Redrives whatever is dead.
enum IgnoresFilter {}

impl Bug for IgnoresFilter {
    async fn redrive_matching(broken: &Broken<Self>, _: DeadLetterFilter, limit: usize) -> Result<u64> {
        broken.store.redrive_matching(DeadLetterFilter::default(), limit).await
    }
}

#[test]
fn redriving_without_the_filter_is_found() {
    finds::<IgnoresFilter>("operations::matching_dead_letters_are_redriven");
}

/// No bug: what the others differ from.
enum Sound {}

impl Bug for Sound {}

#[test]
fn sound_backend_passes_every_case() {
    for case in cases!(Broken<Sound>: repository, operations, ordered, processed) {
        case.run();
    }
    assert_eq!(find_difference::<Broken<Sound>>(16, 40), Ok(()));
}
