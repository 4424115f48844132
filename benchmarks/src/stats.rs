//! Medians and percentiles.

use std::time::Duration;

/// The middle value; the mean of the two middle ones of an even number. NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Durations in milliseconds, sorted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Vec<f64>);

impl Latencies {
    pub(crate) fn new(samples: impl IntoIterator<Item = Duration>) -> Self {
        let mut millis: Vec<f64> = samples.into_iter().map(|sample| sample.as_secs_f64() * 1e3).collect();
        millis.sort_by(f64::total_cmp);
        Self(millis)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that at least this share of all samples does not exceed. NaN of none.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn max(&self) -> f64 {
        self.percentile(1.0)
    }

    /// All samples of several rounds.
    pub(crate) fn pooled<'a>(rounds: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut millis: Vec<f64> = rounds.into_iter().flat_map(|round| round.0.iter().copied()).collect();
        millis.sort_by(f64::total_cmp);
        Self(millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn percentiles_are_samples() {
        let latencies = Latencies::new((1..=1_000).rev().map(Duration::from_millis));
        assert_eq!(
            [0.0, 0.5, 0.99, 0.999, 1.0].map(|share| latencies.percentile(share)),
            [1.0, 500.0, 990.0, 999.0, 1_000.0]
        );
        assert!(Latencies::default().max().is_nan());
    }
}
