//! Which lane serves which topics: made of the router and the limits before anything is claimed.

use std::collections::HashMap;

use outbox_core::{ClaimRequest, Error, Result};

use crate::Config;
use crate::lane::{Batching, Lane};
use crate::limit::Limit;
use crate::pace::Pace;
use crate::router::{Route, Router};

/// The lane of all that has neither a limit nor a batch handler.
const OTHERS: usize = 0;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    lanes: Vec<LanePlan>,
    /// By the index of the router's route.
    of_route: Vec<usize>,
    of_unknown: usize,
}

#[derive(Clone, Debug)]
struct LanePlan {
    /// What it claims; `None`: everything.
    topics: Option<Vec<String>>,
    batching: Option<Batching>,
    limiter: Option<usize>,
}

impl Plan {
    /// # Errors
    /// [`InvalidInput`](outbox_core::ErrorKind::InvalidInput) for a limit that does not fit the router.
    pub(crate) fn try_new(router: &Router, config: &Config) -> Result<Self> {
        let mut plan = Draft::new(&config.limits);
        for (topic, batching) in router.batchings() {
            plan.add(topic, batching);
        }
        plan.check_named(router)?;
        plan.finish(router)
    }

    pub(crate) fn lane(&self, route: &Route) -> usize {
        match route {
            Route::Own(index) => self.of_route.get(*index).copied().unwrap_or(OTHERS),
            Route::Unknown(_) => self.of_unknown,
        }
    }

    pub(crate) fn lanes(&self, config: &Config) -> Vec<Lane> {
        self.lanes.iter().map(|plan| plan.lane(config)).collect()
    }

    /// What each lane claims; `None` for one that claims nothing.
    pub(crate) fn requests(&self, config: &Config) -> Vec<Option<ClaimRequest>> {
        self.lanes.iter().map(|plan| plan.request(config)).collect()
    }
}

impl LanePlan {
    fn lane(&self, config: &Config) -> Lane {
        let limit = self.limiter.and_then(|limiter| config.limits.get(limiter));
        let concurrency = limit.and_then(|limit| limit.concurrency).unwrap_or(config.concurrency);
        let n_messages = concurrency.saturating_mul(self.batching.map_or(1, |batching| batching.max));
        Lane::new(self.batching, self.limiter, Pace::new(n_messages, config.batch), config.max_attempts)
    }

    fn request(&self, config: &Config) -> Option<ClaimRequest> {
        let mut request = ClaimRequest::new(1, config.lease).with_max_attempts(config.max_attempts);
        request.topics = self.topics.clone();
        request.max_bytes = config.max_bytes;
        Some(request).filter(|request| request.topics.as_ref().is_none_or(|topics| !topics.is_empty()))
    }
}

/// A plan under way.
struct Draft<'a> {
    limits: &'a [Limit],
    /// The limit that names a topic.
    named: HashMap<&'a str, usize>,
    others: Option<usize>,
    /// The lane of a limit.
    of_limit: HashMap<usize, usize>,
    lanes: Vec<LanePlan>,
    of_route: Vec<usize>,
}

impl<'a> Draft<'a> {
    fn new(limits: &'a [Limit]) -> Self {
        let named = limits
            .iter()
            .enumerate()
            .flat_map(|(index, limit)| limit.topics.iter().map(move |topic| (topic.as_str(), index)));
        let others = limits.iter().position(|limit| limit.topics.is_empty());
        let lane = LanePlan { topics: Some(Vec::new()), batching: None, limiter: others };
        Self {
            limits,
            named: named.collect(),
            others,
            of_limit: HashMap::new(),
            lanes: vec![lane],
            of_route: Vec::new(),
        }
    }

    fn add(&mut self, topic: &str, batching: Option<Batching>) {
        let named = self.named.get(topic).copied();
        let lane = match (batching, named) {
            (None, None) => OTHERS,
            (None, Some(limit)) => match self.of_limit.get(&limit) {
                Some(lane) => *lane,
                None => {
                    let lane = self.open(None, Some(limit));
                    self.of_limit.insert(limit, lane);
                    lane
                }
            },
            (Some(_), limit) => self.open(batching, limit.or(self.others)),
        };
        self.lanes[lane].topics.get_or_insert_default().push(topic.to_owned());
        self.of_route.push(lane);
    }

    fn open(&mut self, batching: Option<Batching>, limiter: Option<usize>) -> usize {
        self.lanes.push(LanePlan { topics: Some(Vec::new()), batching, limiter });
        self.lanes.len() - 1
    }

    fn check_named(&self, router: &Router) -> Result<()> {
        let mut topics = self.limits.iter().flat_map(|limit| &limit.topics);
        match topics.find(|topic| matches!(router.find(topic), Route::Unknown(_))) {
            Some(topic) => {
                Err(Error::invalid("limit.topics", format_args!("topic {topic:?} has no handler")))
            }
            None => Ok(()),
        }
    }

    fn finish(mut self, router: &Router) -> Result<Plan> {
        let mut of_unknown = OTHERS;
        if router.claims_all() {
            if let Some(batching) = router.fallback_batching() {
                of_unknown = self.open(Some(batching), self.others);
            }
            let is_alone = |(lane, plan): (usize, &LanePlan)| {
                lane == of_unknown || plan.topics.as_ref().is_none_or(Vec::is_empty)
            };
            if !self.lanes.iter().enumerate().all(is_alone) {
                let why =
                    "one for every topic claims every topic, so no other topic can have a limit or batches";
                return Err(Error::invalid("router", why));
            }
            self.lanes[of_unknown].topics = None;
        }
        Ok(Plan { lanes: self.lanes, of_route: self.of_route, of_unknown })
    }
}
