//! The messages of ordered keys: one of a key is handled at a time, the others wait for it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;

use crate::lane::Waiting;

/// The key of a run, shared by its messages.
pub(crate) type Key = Arc<str>;

/// For each key of which a message waits for a handler or has one: those that come after it.
#[derive(Default)]
pub(crate) struct Runs {
    runs: HashMap<Key, VecDeque<Waiting>>,
    n_followers: usize,
}

impl Runs {
    /// Joins the run of its key; gives the message back when it has no key, or is the first one.
    pub(crate) fn join(&mut self, mut waiting: Waiting) -> Option<Waiting> {
        let Some(key) = waiting.message.key.as_deref() else { return Some(waiting) };
        let known = self.runs.get_key_value(key).map(|(key, _)| Arc::clone(key));
        let key = known.unwrap_or_else(|| key.into());
        waiting.ticket.run = Some(Arc::clone(&key));
        match self.runs.entry(key) {
            Entry::Occupied(mut run) => {
                run.get_mut().push_back(waiting);
                self.n_followers += 1;
                None
            }
            Entry::Vacant(run) => {
                run.insert(VecDeque::new());
                Some(waiting)
            }
        }
    }

    /// The message at the head of the run was delivered: the next one, or the end of the run.
    pub(crate) fn next(&mut self, key: &str) -> Option<Waiting> {
        let next = self.runs.get_mut(key)?.pop_front();
        match &next {
            Some(_) => self.n_followers -= 1,
            None => drop(self.runs.remove(key)),
        }
        next
    }

    /// The message at the head of the run was not delivered: those that must not overtake it.
    pub(crate) fn end(&mut self, key: &str) -> VecDeque<Waiting> {
        let followers = self.runs.remove(key).unwrap_or_default();
        self.n_followers -= followers.len();
        followers
    }

    /// Ends the runs in which such a message follows; gives back all that follow.
    pub(crate) fn end_with(&mut self, is_such: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let is_ended = |run: &(&Key, &VecDeque<Waiting>)| run.1.iter().any(&is_such);
        let ended: Vec<_> = self.runs.iter().filter(is_ended).map(|(key, _)| Arc::clone(key)).collect();
        ended.iter().flat_map(|key| self.end(key)).collect()
    }

    pub(crate) fn end_all(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        self.n_followers = 0;
        mem::take(&mut self.runs).into_values().flatten()
    }

    /// Takes out the followers that are lost.
    pub(crate) fn lose(&mut self, is_lost: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let mut lost = Vec::new();
        for run in self.runs.values_mut() {
            let (gone, kept): (Vec<_>, _) = mem::take(run).into_iter().partition(&is_lost);
            *run = kept.into();
            lost.extend(gone);
        }
        self.n_followers -= lost.len();
        lost
    }

    pub(crate) fn followers(&self) -> impl Iterator<Item = &Waiting> {
        self.runs.values().flatten()
    }

    pub(crate) fn n_followers(&self) -> usize {
        self.n_followers
    }
}
