//! The label sets that an adapter has seen, each with what it keeps for it.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLock};

use crate::metric::{Id, Labels, METRICS};

/// The most topics that are told apart: where a fallback serves topics of any name, they are data, and every
/// series costs memory here and in the monitoring system.
pub(crate) const MAX_TOPICS: usize = 200;
/// What the others are called together.
pub(crate) const OTHER_TOPIC: &str = "(other)";

/// By metric, then by the values of the labels.
pub(crate) struct Series<T> {
    by_metric: Vec<RwLock<HashMap<String, T>>>,
    topics: RwLock<HashSet<String>>,
}

impl<T> Series<T> {
    pub(crate) fn new() -> Self {
        Self { by_metric: METRICS.iter().map(|_| RwLock::default()).collect(), topics: RwLock::default() }
    }

    /// Gives `record` what is kept for this label set; `make` makes it at the first time.
    pub(crate) fn with(
        &self,
        id: Id,
        labels: Labels<'_>,
        make: impl FnOnce(Labels<'_>) -> T,
        record: impl FnOnce(&T),
    ) {
        let series = &self.by_metric[id.index()];
        if let Some(known) = series.read().unwrap_or_else(PoisonError::into_inner).get(&*key(labels)) {
            return record(known);
        }
        let mut labels = labels.to_vec();
        self.bound_topics(id, &mut labels);
        let mut series = series.write().unwrap_or_else(PoisonError::into_inner);
        record(series.entry(key(&labels).into_owned()).or_insert_with(|| make(&labels)));
    }

    fn bound_topics(&self, id: Id, labels: &mut [&str]) {
        if id.metric().labels.first() == Some(&"topic") && !self.is_told_apart(labels[0]) {
            labels[0] = OTHER_TOPIC;
        }
    }

    fn is_told_apart(&self, topic: &str) -> bool {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        if topics.contains(topic) || topics.len() >= MAX_TOPICS {
            return topics.contains(topic);
        }
        drop(topics);
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        topics.len() < MAX_TOPICS && topics.insert(topic.to_owned()) || topics.contains(topic)
    }
}

fn key<'a>(labels: Labels<'a>) -> Cow<'a, str> {
    match labels {
        [label] => Cow::Borrowed(label),
        _ => Cow::Owned(labels.join("\u{1f}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_made_once_and_topics_are_bounded() {
        let series = Series::new();
        let mut made = Vec::new();
        for topic in 0..2 * MAX_TOPICS {
            for _ in 0..2 {
                let make = |labels: Labels<'_>| made.push(labels.join("/"));
                series.with(Id::Settled, &[&format!("t{topic}"), "delivered"], make, |()| {});
            }
        }
        assert_eq!(made.len(), MAX_TOPICS + 1);
        assert_eq!((&*made[0], &*made[MAX_TOPICS]), ("t0/delivered", "(other)/delivered"));
    }
}
