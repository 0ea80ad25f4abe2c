//! What operators see of the log: [`Status`], and [`Histogram`], counts by powers of two.

use super::{Error, Pin, Position};

/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = 32;

/// Counts of values by powers of two: bucket `n` counts those up to and including `2^n` that are above the bucket before,
/// the last bucket all above.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Values in each bucket.
    pub buckets: [u64; BUCKETS],
    /// Sum of all values.
    pub sum: u64,
}

impl Histogram {
    pub(super) fn observe(&mut self, value: u64) {
        let bucket = (u64::BITS - value.saturating_sub(1).leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Sizes and counts since the opening.
#[derive(Debug, Clone)]
pub struct Status {
    /// Segments with records, the active one included.
    pub segments: usize,
    /// Bytes of all segments on disk, the one made ready included.
    pub disk_bytes: u64,
    /// Bytes of records that wait to be written.
    pub buffer_bytes: usize,
    /// Callbacks that wait.
    pub callbacks: usize,
    /// Where the next record goes.
    pub end: Position,
    /// The first position that was not handed to the operating system.
    pub written: Position,
    /// The first position that is not on stable storage.
    pub synced: Position,
    /// Who holds the oldest segment; `None`: nobody needs anything.
    pub oldest: Option<Pin>,
    /// Counters and histograms.
    pub counts: Counts,
    /// Why the log takes no more writes.
    pub poison: Option<Error>,
    /// Why the last removal of a segment failed; `None`: it went well.
    pub removal: Option<Error>,
}

/// What was done since the opening.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records appended.
    pub records: u64,
    /// Their bytes, headers and padding included.
    pub record_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Segments that were made on the way of an append, because none was ready.
    pub segments_late: u64,
    /// Segments removed.
    pub segments_removed: u64,
    /// Times an append had to write because the buffer was full.
    pub buffer_full: u64,
    /// How many commits and callbacks each sync served; its count is that of the syncs.
    pub sync_group: Histogram,
    /// How long each sync took, in microseconds, rounded up.
    pub sync_micros: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_buckets_by_powers_of_two() {
        let mut histogram = Histogram::default();
        for value in [0, 1, 2, 3, 4, 5, 1 << 30, (1 << 30) + 1, u64::MAX] {
            histogram.observe(value);
        }
        assert_eq!(histogram.buckets[..4], [2, 1, 2, 1]);
        assert_eq!(histogram.buckets[BUCKETS - 2..], [1, 2]);
        assert_eq!((histogram.count(), histogram.sum), (9, u64::MAX));
    }
}
