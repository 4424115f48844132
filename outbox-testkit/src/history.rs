//! Checks an audit trail that the storage itself wrote.
//!
//! A trigger on the table of messages writes one [`AuditRow`] for every insert, update and delete, in the same
//! transaction and with the database's clock: a ground truth that does not depend on the code under test. The
//! trigger belongs to the backend's harness; [`check`] knows no SQL.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use outbox_core::{Lease, MessageId, Settled};
use uuid::Uuid;

/// Where a stored message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Claimable, or claimed where the image has a token.
    Ready,
    /// Waiting for its due time.
    Parked,
    /// A dead letter.
    Dead,
}

/// The columns of a row that the rules are about. Times are microseconds on the database's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Where the message is.
    pub place: Place,
    /// The token of the lease, where there is one.
    pub token: Option<Uuid>,
    /// When the lease expires.
    pub leased_until: Option<i64>,
    /// When a parked message is due.
    pub due_at: Option<i64>,
    /// How often it was claimed.
    pub attempts: u32,
}

/// One change of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// Rises from change to change of a message.
    pub number: i64,
    /// When the change was made, in microseconds on the database's clock.
    pub at: i64,
    /// The message.
    pub message: MessageId,
    /// The row before; `None` for an insert.
    pub before: Option<Image>,
    /// The row after; `None` for a delete.
    pub after: Option<Image>,
}

/// What a settlement or an extension was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The lease that was named.
    pub lease: Lease,
    /// What the storage said.
    pub settled: Settled,
    /// Whether it was a settlement, which ends the lease, and no extension.
    pub ends_lease: bool,
}

/// What is known beside the trail, when everything has been delivered.
#[derive(Clone, Debug, Default)]
pub struct Outside {
    /// Every message whose transaction has committed, by the business rows written beside it.
    pub committed: BTreeSet<MessageId>,
    /// Every message that a handler has handled with success.
    pub delivered: BTreeSet<MessageId>,
    /// The answers that the dispatchers got. Lost answers are simply not here.
    pub answers: Vec<Answer>,
    /// The attempt limit that all claims were made with.
    pub max_attempts: u32,
}

/// The rule that a history breaks; the names are those of the project's reliability notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// I1: every committed message was delivered or is dead.
    NothingLost,
    /// I4: a message is claimed while nobody holds it.
    LeaseExclusion,
    /// I5: only the current lease changes a message, and answers say what happened.
    Fencing,
    /// I6: a claim counts one attempt, nothing else counts any, and none is beyond the limit.
    Attempts,
    /// I10: a message is in one place, and leaves it from where it was.
    OnePlace,
    /// I11: no message is claimed before it is due.
    NotEarly,
}

/// One place where a history breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The message.
    pub message: MessageId,
    /// What happened, for a human reader.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: message {}: {}", self.rule, self.message, self.what)
    }
}

/// Every place where the history breaks a rule; none for a sound one.
///
/// # Examples
/// ```
/// use outbox_testkit::history::{Outside, check};
/// assert!(check(&[], &Outside::default()).is_empty());
/// ```
pub fn check(trail: &[AuditRow], outside: &Outside) -> Vec<Violation> {
    let mut messages = BTreeMap::<MessageId, Vec<&AuditRow>>::new();
    for row in trail {
        messages.entry(row.message).or_default().push(row);
    }
    let mut checker = Checker { outside, violations: Vec::new() };
    for (message, rows) in &mut messages {
        rows.sort_by_key(|row| row.number);
        checker.check_message(*message, rows);
    }
    checker.check_nothing_lost(&messages);
    checker.violations
}

struct Checker<'a> {
    outside: &'a Outside,
    violations: Vec<Violation>,
}

impl Checker<'_> {
    fn report(&mut self, rule: Rule, message: MessageId, what: impl Into<String>) {
        self.violations.push(Violation { rule, message, what: what.into() });
    }

    fn check_message(&mut self, message: MessageId, rows: &[&AuditRow]) {
        self.check_chain(message, rows);
        for row in rows {
            self.check_image(row);
            self.check_change(row);
        }
        self.check_answers(message, rows);
    }

    /// Each change starts from what the one before left.
    fn check_chain(&mut self, message: MessageId, rows: &[&AuditRow]) {
        let mut last = None;
        for row in rows {
            if row.before != last {
                let what = format!("change {} starts from {:?}, not from {last:?}", row.number, row.before);
                self.report(Rule::OnePlace, message, what);
            }
            last.clone_from(&row.after);
        }
    }

    fn check_image(&mut self, row: &AuditRow) {
        let Some(image) = &row.after else { return };
        let is_leased = image.token.is_some();
        let is_sound = is_leased == image.leased_until.is_some()
            && (image.place == Place::Parked) == image.due_at.is_some()
            && (!is_leased || image.place == Place::Ready);
        if !is_sound {
            self.report(
                Rule::OnePlace,
                row.message,
                format!("change {} leaves it in two places: {image:?}", row.number),
            );
        }
        if image.attempts > self.outside.max_attempts {
            let what = format!("attempt {} of {}", image.attempts, self.outside.max_attempts);
            self.report(Rule::Attempts, row.message, what);
        }
    }

    fn check_change(&mut self, row: &AuditRow) {
        let (Some(before), Some(after)) = (&row.before, &row.after) else { return };
        if is_claim(row) {
            self.check_claim(row, before, after);
        } else {
            self.check_attempts_kept(row, before, after);
        }
        let is_early = before.due_at.is_some_and(|due_at| row.at < due_at);
        if is_early && after.place == Place::Ready {
            self.report(Rule::NotEarly, row.message, format!("change {} comes before it is due", row.number));
        }
    }

    fn check_claim(&mut self, row: &AuditRow, before: &Image, after: &Image) {
        if before.token.is_some() && before.leased_until.is_some_and(|until| row.at < until) {
            self.report(
                Rule::LeaseExclusion,
                row.message,
                format!("claim {} takes what somebody holds", row.number),
            );
        }
        if before.place == Place::Dead {
            self.report(Rule::OnePlace, row.message, format!("claim {} takes a dead letter", row.number));
        }
        if after.attempts != before.attempts.saturating_add(1) {
            let what = format!("claim {} counts {} after {}", row.number, after.attempts, before.attempts);
            self.report(Rule::Attempts, row.message, what);
        }
    }

    /// A release takes one attempt back, a redrive all; nothing else changes them.
    fn check_attempts_kept(&mut self, row: &AuditRow, before: &Image, after: &Image) {
        let is_release = before.token.is_some() && after.token.is_none() && after.place == Place::Ready;
        let is_redrive = before.place == Place::Dead && after.place == Place::Ready;
        let expected = match (is_release, is_redrive) {
            (true, _) => before.attempts.saturating_sub(1),
            (_, true) => 0,
            _ => before.attempts,
        };
        if after.attempts != expected {
            let what =
                format!("change {} makes {} attempts of {}", row.number, after.attempts, before.attempts);
            self.report(Rule::Attempts, row.message, what);
        }
    }

    /// Each answer `Applied` has the change that it claims, made to a row that had the token; a lease that was
    /// only ever told `LeaseLost` has made none. The claim that buries an expired row ends its lease as well.
    fn check_answers(&mut self, message: MessageId, rows: &[&AuditRow]) {
        let mut tokens = BTreeMap::<Uuid, (usize, usize)>::new();
        let own =
            self.outside.answers.iter().filter(|answer| answer.lease.id == message && answer.ends_lease);
        for answer in own {
            let (n_applied, n_lost) = tokens.entry(answer.lease.token).or_default();
            match answer.settled {
                Settled::Applied => *n_applied += 1,
                Settled::LeaseLost => *n_lost += 1,
            }
        }
        for (token, (n_applied, n_lost)) in tokens {
            let n_ends = rows.iter().filter(|row| ends_lease(row, token)).count();
            if n_applied > n_ends {
                self.report(Rule::Fencing, message, format!("lease {token} was told that it applied"));
            }
            if n_applied == 0 && n_lost > 0 && rows.iter().any(|row| settles(row, token)) {
                self.report(
                    Rule::Fencing,
                    message,
                    format!("lease {token} was told lost, and it changed the row"),
                );
            }
        }
    }

    fn check_nothing_lost(&mut self, messages: &BTreeMap<MessageId, Vec<&AuditRow>>) {
        let outside = self.outside;
        for message in outside.committed.difference(&outside.delivered) {
            let last = messages.get(message).and_then(|rows| rows.last()).and_then(|row| row.after.as_ref());
            if last.is_none_or(|image| image.place != Place::Dead) {
                self.report(Rule::NothingLost, *message, "neither delivered nor dead");
            }
        }
    }
}

/// Whether the change gave the message a lease it did not have.
fn is_claim(row: &AuditRow) -> bool {
    let token = |image: &Option<Image>| image.as_ref().and_then(|image| image.token);
    token(&row.after).is_some() && token(&row.after) != token(&row.before)
}

fn ends_lease(row: &AuditRow, token: Uuid) -> bool {
    let holds = |image: &Option<Image>| image.as_ref().is_some_and(|image| image.token == Some(token));
    holds(&row.before) && !holds(&row.after)
}

/// Whether the change ends the lease as only its holder can: not by a claim that takes an expired row or buries
/// it.
fn settles(row: &AuditRow, token: Uuid) -> bool {
    let until = row.before.as_ref().and_then(|image| image.leased_until);
    let has_expired = until.is_some_and(|until| until <= row.at);
    let is_burial = row.after.as_ref().is_some_and(|image| image.place == Place::Dead) && has_expired;
    ends_lease(row, token) && !is_claim(row) && !is_burial
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: i64 = 100;

    fn ready(attempts: u32) -> Image {
        Image { place: Place::Ready, token: None, leased_until: None, due_at: None, attempts }
    }

    fn leased(token: Uuid, until: i64, attempts: u32) -> Image {
        Image { token: Some(token), leased_until: Some(until), ..ready(attempts) }
    }

    fn parked(due_at: i64, attempts: u32) -> Image {
        Image { place: Place::Parked, due_at: Some(due_at), ..ready(attempts) }
    }

    fn dead(attempts: u32) -> Image {
        Image { place: Place::Dead, ..ready(attempts) }
    }

    struct Story {
        message: MessageId,
        rows: Vec<AuditRow>,
        outside: Outside,
    }

    impl Story {
        /// A message that is inserted at 0 and then becomes each of `images` at its time.
        fn of(images: impl IntoIterator<Item = (i64, Option<Image>)>) -> Self {
            let message = Uuid::now_v7();
            let mut rows: Vec<AuditRow> = Vec::new();
            for (at, after) in [(0, Some(ready(0)))].into_iter().chain(images) {
                let before = rows.last().and_then(|row| row.after.clone());
                rows.push(AuditRow { number: rows.len() as i64, at, message, before, after });
            }
            let committed = BTreeSet::from([message]);
            let outside =
                Outside { delivered: committed.clone(), committed, max_attempts: 3, answers: vec![] };
            Self { message, rows, outside }
        }

        fn answered(mut self, token: Uuid, settled: Settled) -> Self {
            let lease = Lease { id: self.message, token, locator: 0 };
            self.outside.answers.push(Answer { lease, settled, ends_lease: true });
            self
        }

        fn broken(&self) -> Vec<Rule> {
            check(&self.rows, &self.outside).into_iter().map(|violation| violation.rule).collect()
        }
    }

    fn tokens() -> [Uuid; 2] {
        [Uuid::new_v4(), Uuid::new_v4()]
    }

    #[test]
    fn sound_history_breaks_no_rule() {
        let [a, b] = tokens();
        let story = Story::of([
            (1, Some(leased(a, 1 + LEASE, 1))),
            (50, Some(leased(a, 50 + LEASE, 1))),
            (150, Some(leased(b, 150 + LEASE, 2))),
            (160, Some(parked(500, 2))),
            (501, Some(ready(2))),
            (502, Some(leased(a, 602, 3))),
            (503, Some(ready(2))),
            (504, Some(leased(b, 604, 3))),
            (505, Some(dead(3))),
            (506, Some(ready(0))),
            (507, Some(leased(a, 607, 1))),
            (508, None),
        ]);
        let story = story.answered(a, Settled::Applied).answered(b, Settled::Applied);
        assert_eq!(story.broken(), []);
    }

    #[test]
    fn lost_message_is_found() {
        let mut story = Story::of([]);
        story.outside.delivered.clear();
        assert_eq!(story.broken(), [Rule::NothingLost]);
        story.rows.clear();
        assert_eq!(story.broken(), [Rule::NothingLost]);
    }

    #[test]
    fn dead_message_is_not_lost() {
        let [a, _] = tokens();
        let mut story = Story::of([(1, Some(leased(a, 101, 1))), (2, Some(dead(1)))]);
        story.outside.delivered.clear();
        assert_eq!(story.broken(), []);
    }

    #[test]
    fn claim_of_a_held_message_is_found() {
        let [a, b] = tokens();
        let story = Story::of([(1, Some(leased(a, 101, 1))), (100, Some(leased(b, 200, 2)))]);
        assert_eq!(story.broken(), [Rule::LeaseExclusion]);
    }

    #[test]
    fn stale_settlement_is_found() {
        let [a, b] = tokens();
        let claims =
            [(1, Some(leased(a, 101, 1))), (101, Some(leased(b, 201, 2))), (110, Some(parked(900, 2)))];
        let stale = Story::of(claims.clone()).answered(a, Settled::Applied).answered(b, Settled::LeaseLost);
        assert_eq!(stale.broken(), [Rule::Fencing], "b lost what a changed");
        let twice = Story::of(claims).answered(b, Settled::Applied).answered(b, Settled::Applied);
        assert_eq!(twice.broken(), [Rule::Fencing]);
    }

    #[test]
    fn lost_lease_that_was_overtaken_is_sound() {
        let [a, b] = tokens();
        let story = Story::of([(1, Some(leased(a, 101, 3))), (101, Some(dead(3)))]);
        let mut overtaken = story.answered(a, Settled::LeaseLost);
        overtaken.rows[0].after = Some(ready(2));
        overtaken.rows[1].before = Some(ready(2));
        assert_eq!(overtaken.broken(), []);
        let reclaimed =
            Story::of([(1, Some(leased(a, 101, 1))), (101, Some(leased(b, 201, 2))), (102, None)]);
        assert_eq!(reclaimed.answered(a, Settled::LeaseLost).answered(b, Settled::Applied).broken(), []);
    }

    #[test]
    fn miscounted_attempts_are_found() {
        let [a, b] = tokens();
        let not_counted = [(1, Some(leased(a, 101, 1))), (101, Some(leased(b, 201, 1)))];
        assert_eq!(Story::of(not_counted).broken(), [Rule::Attempts]);
        let reset_by_retry = [(1, Some(leased(a, 101, 1))), (2, Some(parked(9, 0)))];
        assert_eq!(Story::of(reset_by_retry).broken(), [Rule::Attempts]);
        let kept_by_release = [(1, Some(leased(a, 101, 1))), (2, Some(ready(1)))];
        assert_eq!(Story::of(kept_by_release).broken(), [Rule::Attempts]);
        let mut beyond = Story::of([(1, Some(leased(a, 101, 1)))]);
        beyond.outside.max_attempts = 0;
        assert_eq!(beyond.broken(), [Rule::Attempts]);
    }

    #[test]
    fn message_in_two_places_is_found() {
        let [a, _] = tokens();
        let dead_and_leased = Image { place: Place::Dead, ..leased(a, 101, 0) };
        let due_and_ready = Image { due_at: Some(1), ..ready(0) };
        let parked_for_ever = Image { place: Place::Parked, ..ready(0) };
        for image in [due_and_ready, parked_for_ever] {
            assert_eq!(Story::of([(1, Some(image))]).broken(), [Rule::OnePlace]);
        }
        assert!(Story::of([(1, Some(dead_and_leased))]).broken().contains(&Rule::OnePlace));
    }

    #[test]
    fn change_from_nowhere_is_found() {
        let [a, _] = tokens();
        let mut story = Story::of([(1, Some(leased(a, 101, 1))), (2, None)]);
        story.rows.remove(1);
        assert_eq!(story.broken(), [Rule::OnePlace]);
        let claim_of_a_dead_one = [(1, Some(dead(0))), (2, Some(leased(a, 101, 1)))];
        assert_eq!(Story::of(claim_of_a_dead_one).broken(), [Rule::OnePlace]);
    }

    #[test]
    fn early_claim_is_found() {
        let [a, _] = tokens();
        let promoted = [(1, Some(parked(50, 0))), (49, Some(ready(0)))];
        assert_eq!(Story::of(promoted).broken(), [Rule::NotEarly]);
        let claimed = [(1, Some(parked(50, 0))), (49, Some(leased(a, 149, 1)))];
        assert_eq!(Story::of(claimed).broken(), [Rule::NotEarly]);
        let in_time = [(1, Some(parked(50, 0))), (50, Some(ready(0)))];
        assert_eq!(Story::of(in_time).broken(), []);
    }
}
