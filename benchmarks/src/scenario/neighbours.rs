//! What else is in the table: a bigger backlog, messages for later, of a topic nobody serves, dead ones.

use std::time::Duration;

use outbox_core::{HandlerError, Message};
use outbox_dispatcher::Router;

use super::part::Profile;
use crate::deliveries::Deliveries;
use crate::error::Result;
use crate::load::UNSERVED;
use crate::meter::Rounds;
use crate::options::Options;
use crate::ours::{Ours, full_batches};
use crate::report::{Bound, Line};
use crate::side::{Side, drained, fill_with, interleave, refill_and_drain};
use crate::site::{Kind, Site};

const NEXT_MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const DOOMED: &str = "order.doomed";

/// Which neighbours the drained messages have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Neighbours {
    Parked,
    Unserved,
    Dead,
}

impl Neighbours {
    fn scenario(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Unserved => "unserved",
            Self::Dead => "dead",
        }
    }

    fn n_messages(self) -> u64 {
        match self {
            Self::Parked | Self::Unserved => 1_000_000,
            Self::Dead => 100_000,
        }
    }

    async fn put(self, side: &Ours, n_messages: u64) -> Result<()> {
        match self {
            Self::Parked => fill_with(side, crate::load::TOPIC, n_messages, NEXT_MONTH).await,
            Self::Unserved => fill_with(side, UNSERVED, n_messages, Duration::ZERO).await,
            Self::Dead => {
                fill_with(side, DOOMED, n_messages, Duration::ZERO).await?;
                bury(side, n_messages).await
            }
        }
    }
}

/// Makes every message of the topic a dead letter, as a handler does it.
async fn bury(side: &Ours, n_messages: u64) -> Result<()> {
    let deliveries = Deliveries::default();
    let counter = deliveries.clone();
    let router = Router::new().on(DOOMED, async move |_message: Message| {
        counter.count();
        Err(HandlerError::dead_letter("no such order"))
    });
    let live = side.start(router, full_batches())?;
    deliveries.reach(n_messages).await?;
    let report = live.stop().await?;
    if report.n_dead == n_messages {
        return Ok(());
    }
    Err(format!("{n_messages} messages to bury: {report:?}").into())
}

/// The drain rate among neighbours, which stay from round to round, and in a table of its own.
pub(crate) async fn among(site: &Site, options: &Options, neighbours: Neighbours) -> Result<Line> {
    let n_messages = options.n_messages(200_000);
    let n_neighbours = options.n_neighbours(neighbours.n_messages());
    let (plain, crowded) = (Ours::create(site).await?, Ours::create(site).await?);
    neighbours.put(&crowded, n_neighbours).await?;
    let mut profile = Profile::default();
    let (without, with) = interleave(
        site,
        options.n_rounds,
        async |round| refill_and_drain(site, &plain, n_messages, round).await,
        async |round| {
            Profile::begin(site).await?;
            let usage = refill_and_drain(site, &crowded, n_messages, round).await?;
            profile = Profile::end(site).await?;
            Ok(usage)
        },
    )
    .await?;
    plain.remove().await?;
    crowded.remove().await?;
    let line = Line::new(neighbours.scenario(), site.kind())
        .with("messages", n_messages)
        .with("neighbours", n_neighbours)
        .with("statements", profile.json());
    Ok(gated(against(line, &without, &with), site, &without, &with, 0.85))
}

/// The drain rate of a big backlog and of a small one.
pub(crate) async fn backlog(site: &Site, options: &Options) -> Result<Line> {
    let small = options.n_messages(200_000);
    let big = 10 * small;
    let mut profile = Profile::default();
    let (without, with) = interleave(
        site,
        options.n_rounds.min(3),
        async |round| drained::<Ours>(site, small, round).await,
        async |round| {
            Profile::begin(site).await?;
            let usage = drained::<Ours>(site, big, round).await?;
            profile = Profile::end(site).await?;
            Ok(usage)
        },
    )
    .await?;
    let line = Line::new("backlog", site.kind())
        .with("messages", small)
        .with("backlog", big)
        .with("statements", profile.json());
    Ok(gated(against(line, &without, &with), site, &without, &with, 0.8))
}

pub(crate) fn against(line: Line, without: &Rounds, with: &Rounds) -> Line {
    line.with("with", with.json()).with("without", without.json()).figure("ratio", with.ratio_to(without))
}

pub(crate) fn gated(line: Line, site: &Site, without: &Rounds, with: &Rounds, bound: f64) -> Line {
    match site.kind() {
        Kind::Postgres => line.gate("drain rate / plain", with.ratio_to(without), Bound::AtLeast(bound)),
        Kind::Sqlite | Kind::MySql => line,
    }
}
