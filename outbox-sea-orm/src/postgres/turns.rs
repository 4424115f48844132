//! Claims on an ordered table: no marks, but a walk from key to key that goes on where the last one ended.

use std::time::{Duration, Instant};

use outbox_core::Result;

use super::{Claiming, LOOK_INTERVAL, PROMOTE_LIMIT, Rest, micros, token};
use crate::repository::Ordered;
use crate::row::column;
use crate::turns::{keyless_share, next_key};

/// How long after a walk that found expired leases and could recover none: what is before them is not done yet.
const BLOCKED_PAUSE: Duration = Duration::from_secs(1);

impl Claiming<'_> {
    pub(super) async fn take_turns(&mut self, ordered: &Ordered) -> Result<()> {
        let request = self.request;
        if request.recover && self.marks.is_walk_due(Instant::now(), request) {
            if self.walk().await? {
                return Ok(());
            }
            self.rest_from_blocked();
        }
        let has_looked = self.is_look_due();
        if has_looked {
            self.promote_due().await?;
        }
        self.turn(ordered).await?;
        if self.claim.is_empty() && !has_looked && self.promote_due().await? > 0 {
            self.turn(ordered).await?;
        }
        Ok(())
    }

    fn rest_from_blocked(&mut self) {
        let now = Instant::now();
        if self.marks.walk_at.is_some_and(|at| at <= now) {
            self.marks.walk_at = Some(now + BLOCKED_PAUSE.min(self.request.lease));
        }
    }

    fn is_look_due(&self) -> bool {
        let now = Instant::now();
        let is_recent = self.marks.looked_at.is_some_and(|at| now.duration_since(at) < LOOK_INTERVAL);
        !is_recent || self.marks.next_due.is_some_and(|due| due <= now)
    }

    async fn turn(&mut self, ordered: &Ordered) -> Result<()> {
        let token = token(true);
        let turn = Rest::Turn {
            key: &self.marks.key,
            blocks: ordered.blocks,
            n_keyless: keyless_share(self.request.limit, token),
        };
        let rows = self.rows(&ordered.sql.claim_ordered, token, turn).await?;
        if let Some(key) = next_key(&self.marks.key, &rows) {
            self.marks.key = key;
        }
        self.add(rows).await
    }

    /// Makes ready what is due; how many rows.
    async fn promote_due(&mut self) -> Result<u64> {
        let mut n_promoted = 0;
        while self.look_at_parked().await? {
            let n = self.promote().await?;
            n_promoted += n;
            // the rest of a long list comes with the next claim; what others hold is theirs
            if n < PROMOTE_LIMIT as u64 {
                break;
            }
        }
        Ok(n_promoted)
    }

    /// Whether a parked row is due.
    async fn look_at_parked(&mut self) -> Result<bool> {
        let row = self.row(&self.inner.postgres.sql.parked, Vec::new()).await?;
        let now = Instant::now();
        self.marks.looked_at = Some(now);
        self.marks.next_due = micros(&row, 1)?.map(|due| now + due);
        column(&row, 0)
    }
}
