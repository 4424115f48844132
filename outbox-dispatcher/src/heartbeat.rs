//! Renews every lease that is held, on a task of its own: a handler that is busy does not stop it.

use std::collections::HashSet;
use std::sync::Arc;

use outbox_core::{Lease, Repository, Settled};
use tokio::time::sleep;

use crate::desk::Desk;
use crate::health::Health;

/// Renews for ever; dropped at the end of the run.
pub(crate) async fn run<R: Repository>(desk: Arc<Desk>, repository: Arc<R>) {
    let period = desk.config.heartbeat();
    let mut health = Health::new("extend", desk.observers.clone());
    let mut pause = period;
    loop {
        sleep(pause).await;
        pause = match renew(&desk, &*repository, &mut health).await {
            true => period,
            false => health.delay().min(period / 2),
        };
    }
}

async fn renew<R: Repository>(desk: &Desk, repository: &R, health: &mut Health) -> bool {
    let leases = desk.leases();
    if leases.is_empty() {
        return true;
    }
    let config = &desk.config;
    let limit = config.operation_timeout.min(config.heartbeat());
    match health.watch(limit, repository.extend(leases.clone(), config.lease)).await {
        Ok(answers) => {
            let lost = lost(leases, &answers);
            if !lost.is_empty() {
                desk.lose(&lost);
            }
            true
        }
        Err(_) => false,
    }
}

fn lost(leases: Vec<Lease>, answers: &[Settled]) -> HashSet<Lease> {
    let lost = leases.into_iter().zip(answers).filter(|(_, answer)| **answer == Settled::LeaseLost);
    lost.map(|(lease, _)| lease).collect()
}
