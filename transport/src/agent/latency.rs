//! How long requests took, from the agent's taking them to their end.

use core::fmt;
use std::collections::HashMap;

use dragon_protocol::NodeIndex;

/// Counts of durations, by powers of two: bucket `n` has those of at least 2ⁿ⁻¹ and less than 2ⁿ nanoseconds, bucket 0
/// those of none, the last also all that are longer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Histogram {
    buckets: [u64; BUCKETS],
}

const BUCKETS: usize = 40;

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
        }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filled = self.buckets.iter().enumerate().filter(|(_, n)| **n > 0);
        f.debug_map().entries(filled).finish()
    }
}

impl Histogram {
    /// Counts a duration in nanoseconds.
    pub fn record(&mut self, nanoseconds: u64) {
        let bucket = (u64::BITS - nanoseconds.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
    }

    /// The counts.
    #[must_use]
    pub fn buckets(&self) -> &[u64] {
        &self.buckets
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// A duration in nanoseconds that `percent` of all do not exceed: the end of the bucket in which that lies. 0 when
    /// nothing was counted.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.count() * percent).div_ceil(100).max(1);
        let mut sum = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            sum += count;
            if sum >= wanted {
                return 1 << bucket;
            }
        }
        0
    }
}

/// One for each node.
#[derive(Debug, Default)]
pub(super) struct Latencies(HashMap<NodeIndex, Histogram>);

impl Latencies {
    pub(super) fn record(&mut self, node: NodeIndex, nanoseconds: u64) {
        self.0.entry(node).or_default().record(nanoseconds);
    }

    pub(super) fn of(&self, node: NodeIndex) -> Histogram {
        self.0.get(&node).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;

    #[test]
    fn durations_are_counted_by_powers_of_two() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50), 0);
        for nanoseconds in [0, 1, 2, 3, 1000, u64::MAX] {
            histogram.record(nanoseconds);
        }
        assert_eq!(&histogram.buckets()[..3], [1, 1, 2]);
        assert_eq!(histogram.buckets()[10], 1);
        assert_eq!(histogram.buckets().last(), Some(&1));
        assert_eq!(histogram.count(), 6);
        assert_eq!(histogram.percentile(50), 4);
        assert_eq!(histogram.percentile(80), 1024);
    }
}
