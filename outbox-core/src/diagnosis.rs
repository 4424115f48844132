use std::fmt;
use std::future::Future;
use std::time::Duration;

use crate::{Operations, Result, Stats, TopicStats};

/// Up to so many messages that fail again and again are the messages' fault; more are that of what they are sent to.
const FEW: u64 = 3;
/// From this attempt on a failure is no accident.
const TRIED: u32 = 3;

/// What the counts say about delivery, in words by `Display`.
///
/// A conclusion from one moment's numbers: where it matters, look twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Diagnosis {
    /// There is nothing to deliver.
    Idle,
    /// Nothing has been waiting for longer than it should.
    Healthy,
    /// Messages wait, and nobody has claimed any.
    DispatcherDown {
        /// Messages that are due.
        n_due: u64,
        /// For how long the first of them.
        oldest_due: Duration,
    },
    /// Messages of this topic wait, and only other topics' are being delivered.
    Unserved {
        /// The topic.
        topic: String,
        /// Messages that are due.
        n_due: u64,
        /// For how long the first of them.
        oldest_due: Duration,
    },
    /// Messages of this topic are being delivered, and too slowly.
    TooSlow {
        /// The topic.
        topic: String,
        /// Messages that are due.
        n_due: u64,
        /// Messages being delivered.
        n_claimed: u64,
        /// For how long the first of those that are due.
        oldest_due: Duration,
    },
    /// Many messages of this topic fail and wait for another attempt.
    DownstreamDown {
        /// The topic.
        topic: String,
        /// Messages that wait for another attempt.
        n_retrying: u64,
        /// The highest attempt.
        highest_attempt: u32,
    },
    /// A few messages of this topic fail again and again while others go through.
    PoisonMessage {
        /// The topic.
        topic: String,
        /// The highest attempt.
        highest_attempt: u32,
    },
    /// Messages of this topic are dead.
    DeadLetters {
        /// The topic.
        topic: String,
        /// How many.
        n_dead: u64,
    },
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => write!(f, "idle: there is nothing to deliver"),
            Self::Healthy => write!(f, "healthy: nothing waits longer than it should"),
            Self::DispatcherDown { n_due, oldest_due } => write!(
                f,
                "no dispatcher: {n_due} messages are due, the first for {oldest_due:.0?}, and none is claimed: no \
                 dispatcher runs, it cannot reach the database, or it has paused because a downstream is unavailable"
            ),
            Self::Unserved { topic, n_due, oldest_due } => write!(
                f,
                "topic {topic} is not served: {n_due} messages are due, the first for {oldest_due:.0?}, and only \
                 other topics are delivered: no router has a handler for it, or the topic was renamed"
            ),
            Self::TooSlow { topic, n_due, n_claimed, oldest_due } => write!(
                f,
                "topic {topic} is delivered too slowly: {n_due} messages are due, the first for {oldest_due:.0?}, \
                 while {n_claimed} are being handled: more concurrency, more dispatchers, or a faster handler"
            ),
            Self::DownstreamDown { topic, n_retrying, highest_attempt } => write!(
                f,
                "topic {topic} fails: {n_retrying} messages wait for another attempt, the highest is \
                 {highest_attempt}: what its handler depends on refuses or is away"
            ),
            Self::PoisonMessage { topic, highest_attempt } => write!(
                f,
                "topic {topic} has a poison message: one is in attempt {highest_attempt} while others go through: \
                 see its history"
            ),
            Self::DeadLetters { topic, n_dead } => write!(
                f,
                "topic {topic} has {n_dead} dead letters: see their errors, then redrive or discard them"
            ),
        }
    }
}

impl Stats {
    /// What these counts say, never nothing. A message may be due for `patience` before that counts as waiting: the
    /// lease plus a polling interval of the dispatchers is a good value, with their defaults about 30 s.
    pub fn diagnose(&self, patience: Duration) -> Vec<Diagnosis> {
        let total = self.total();
        let is_late = |stats: &TopicStats| stats.oldest_due.is_some_and(|age| age > patience);
        let is_moving = |stats: &TopicStats| stats.n_claimed > 0 || (stats.n_due > 0 && !is_late(stats));
        let is_down = is_late(&total) && !self.topics.values().any(is_moving);
        let mut found = Vec::new();
        if is_down {
            let oldest_due = total.oldest_due.unwrap_or_default();
            found.push(Diagnosis::DispatcherDown { n_due: total.n_due, oldest_due });
        }
        for (topic, stats) in &self.topics {
            if is_late(stats) && !is_down {
                found.extend(waiting(topic, stats));
            }
            found.extend(failing(topic, stats));
            found.extend(
                (stats.n_dead > 0)
                    .then(|| Diagnosis::DeadLetters { topic: topic.clone(), n_dead: stats.n_dead }),
            );
        }
        if found.is_empty() {
            let is_idle = total.n_pending + total.n_claimed == 0;
            found.push(if is_idle { Diagnosis::Idle } else { Diagnosis::Healthy });
        }
        found
    }
}

/// Of a topic whose messages have been due for too long.
fn waiting(topic: &str, stats: &TopicStats) -> Option<Diagnosis> {
    let TopicStats { n_due, n_claimed, .. } = *stats;
    let (topic, oldest_due) = (topic.to_owned(), stats.oldest_due?);
    Some(match n_claimed {
        0 => Diagnosis::Unserved { topic, n_due, oldest_due },
        _ => Diagnosis::TooSlow { topic, n_due, n_claimed, oldest_due },
    })
}

fn failing(topic: &str, stats: &TopicStats) -> Option<Diagnosis> {
    let TopicStats { n_retrying, highest_attempt, .. } = *stats;
    let topic = topic.to_owned();
    if n_retrying > FEW {
        return Some(Diagnosis::DownstreamDown { topic, n_retrying, highest_attempt });
    }
    (highest_attempt >= TRIED).then_some(Diagnosis::PoisonMessage { topic, highest_attempt })
}

/// What an operator does with two calls of [`Operations`].
pub trait OperationsExt: Operations {
    /// [`Stats::diagnose`] of the counts now.
    ///
    /// # Errors
    /// Those of [`Operations::stats`].
    fn diagnose(&self, patience: Duration) -> impl Future<Output = Result<Vec<Diagnosis>>> + Send {
        async move { Ok(self.stats().await?.diagnose(patience)) }
    }
}

impl<O: Operations + ?Sized> OperationsExt for O {}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const LATE: Option<Duration> = Some(Duration::from_secs(31));
    const SOON: Option<Duration> = Some(Duration::from_secs(30));

    fn diagnose<const N: usize>(topics: [(&str, TopicStats); N]) -> Vec<String> {
        let stats = Stats::new(topics.into_iter().map(|(topic, stats)| (topic.to_owned(), stats)).collect());
        let first_words =
            |found: &Diagnosis| found.to_string().split(':').next().unwrap_or_default().to_owned();
        stats.diagnose(PATIENCE).iter().map(first_words).collect()
    }

    fn due(n_due: u64, oldest_due: Option<Duration>) -> TopicStats {
        TopicStats { n_pending: n_due, n_due, oldest_due, ..TopicStats::default() }
    }

    fn claimed(n_claimed: u64, stats: TopicStats) -> TopicStats {
        TopicStats { n_claimed, ..stats }
    }

    #[test]
    fn nothing_to_deliver_is_idle_and_what_flows_is_healthy() {
        assert_eq!(diagnose([]), ["idle"]);
        assert_eq!(diagnose([("a", TopicStats { n_done: 7, ..TopicStats::default() })]), ["idle"]);
        assert_eq!(diagnose([("a", due(5, SOON))]), ["healthy"]);
        assert_eq!(diagnose([("a", claimed(1, due(0, None)))]), ["healthy"]);
        let delayed = TopicStats { n_pending: 9, ..TopicStats::default() };
        assert_eq!(diagnose([("a", delayed)]), ["healthy"]);
    }

    #[test]
    fn nothing_claimed_while_messages_wait_is_no_dispatcher() {
        assert_eq!(diagnose([("a", due(5, LATE)), ("b", due(1, LATE))]), ["no dispatcher"]);
    }

    #[test]
    fn a_topic_that_waits_while_others_move_is_not_served() {
        let others = [claimed(1, due(0, None)), due(3, SOON)];
        for other in others {
            assert_eq!(diagnose([("a", due(5, LATE)), ("b", other)]), ["topic a is not served"]);
        }
    }

    #[test]
    fn a_topic_that_waits_while_it_is_delivered_is_too_slow() {
        assert_eq!(diagnose([("a", claimed(10, due(500, LATE)))]), ["topic a is delivered too slowly"]);
    }

    #[test]
    fn many_retries_are_the_downstreams_and_few_the_messages_fault() {
        let retrying = |n_retrying, highest_attempt| TopicStats {
            n_pending: n_retrying,
            n_retrying,
            highest_attempt,
            ..TopicStats::default()
        };
        assert_eq!(diagnose([("a", retrying(4, 1))]), ["topic a fails"]);
        assert_eq!(diagnose([("a", retrying(3, 3))]), ["topic a has a poison message"]);
        assert_eq!(diagnose([("a", retrying(3, 2))]), ["healthy"]);
        assert_eq!(diagnose([("a", claimed(1, retrying(0, 7)))]), ["topic a has a poison message"]);
    }

    #[test]
    fn dead_letters_are_named_beside_the_rest() {
        let dead = TopicStats { n_dead: 2, ..due(5, LATE) };
        assert_eq!(diagnose([("a", dead)]), ["no dispatcher", "topic a has 2 dead letters"]);
    }
}
