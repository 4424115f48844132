use std::collections::HashMap;

/// The number below which no row can appear any more. Every INSERT takes a lock before it draws its number and
/// keeps it until its commit is visible; whoever holds that lock drew numbers above the highest one that had been
/// handed out when it was last seen not to hold it.
#[derive(Default)]
pub(crate) struct Horizon {
    pub(crate) at: i64,
    pub(crate) last: i64,
    lows: HashMap<String, i64>,
}

impl Horizon {
    /// `last` was read before `holders`. Says false when the numbers went back, as they may after a crash:
    /// everything that was remembered is void.
    pub(crate) fn learn(&mut self, last: i64, holders: Vec<String>, safe: i64) -> bool {
        if last < self.last {
            return false;
        }
        let low = |holder: &str| match self.lows.get(holder) {
            Some(low) => *low,
            // a prepared transaction has lost the name under which it was seen before
            None if holder.starts_with("-1/") => safe,
            None => self.last,
        };
        self.lows = holders
            .into_iter()
            .map(|holder| (low(&holder), holder))
            .map(|(low, holder)| (holder, low))
            .collect();
        self.last = last;
        self.at = self.lows.values().copied().fold(last, i64::min);
        true
    }
}
