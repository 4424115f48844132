/// What a run did, in numbers.
///
/// Every claimed message is counted once more: `n_claimed` is the sum of the others, less the messages that a
/// claim itself made dead (`n_dead_unclaimed`, also counted in `n_dead`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Handed out to this dispatcher.
    pub n_claimed: u64,
    /// Delivered and removed.
    pub n_done: u64,
    /// Failed and due again later.
    pub n_retried: u64,
    /// Made dead letters, by a handler's answer, after the last attempt or by the claim.
    pub n_dead: u64,
    /// Of `n_dead`, those that the claim made dead instead of handing them out.
    pub n_dead_unclaimed: u64,
    /// Given back without a counted attempt.
    pub n_released: u64,
    /// The lease ran out and the message was taken by somebody else, or removed.
    pub n_lease_lost: u64,
    /// Settled by a second try that found the lease gone: almost always because the first one had worked and
    /// its answer was lost.
    pub n_unconfirmed: u64,
    /// Still held at the end: their leases expire, and then they are delivered again.
    pub n_unsettled: u64,
}
