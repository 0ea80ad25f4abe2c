//! A histogram of durations for the hot path.
//!
//! `prometheus::Histogram` sums in a floating-point compare-and-swap loop that all threads share. Here each thread adds to
//! a stripe of its own (two relaxed adds), and reading sums the stripes. Every duration is counted; nothing is sampled.
//!
//! Buckets are powers of two of a microsecond, so that finding one is a count of leading zeros: 1 us, 2 us, ... 67 s, and
//! one above. A bucket holds durations up to and including its bound, as Prometheus has it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::proto;

/// Bounded buckets: the last ends at 2^26 us.
const BOUNDED: usize = 27;

/// One more for everything longer.
const BUCKETS: usize = BOUNDED + 1;

/// Most stripes; more threads than that share.
const STRIPES_MAX: usize = 32;

/// What one thread, or a few, have recorded. Alone on its cache lines.
#[repr(align(128))]
struct Stripe {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

impl Default for Stripe {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), nanos: AtomicU64::new(0) }
    }
}

/// Counts durations. Any thread may record and read at any time; a reading that meets recordings holds some of them.
pub struct Timings {
    /// A power of two of them.
    stripes: Box<[Stripe]>,
}

/// The sum over all stripes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Totals {
    buckets: [u64; BUCKETS],
    nanos: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self::new()
    }
}

impl Timings {
    /// An empty one.
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let stripes = threads.next_power_of_two().min(STRIPES_MAX);
        Self { stripes: (0..stripes).map(|_| Stripe::default()).collect() }
    }

    /// Counts `duration`.
    #[inline]
    pub fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let stripe = &self.stripes[stripe_of_thread() & (self.stripes.len() - 1)];
        stripe.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        stripe.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.totals().count()
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals { buckets: [0; BUCKETS], nanos: 0 };
        for stripe in &self.stripes {
            for (total, bucket) in totals.buckets.iter_mut().zip(&stripe.buckets) {
                *total += bucket.load(Ordering::Relaxed);
            }
            totals.nanos = totals.nanos.wrapping_add(stripe.nanos.load(Ordering::Relaxed));
        }
        totals
    }
}

impl Totals {
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Both together.
    pub(super) fn and(mut self, other: &Self) -> Self {
        for (total, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *total += more;
        }
        self.nanos = self.nanos.wrapping_add(other.nanos);
        self
    }

    /// As Prometheus writes it: cumulative counts, seconds.
    pub(super) fn to_proto(&self) -> proto::Histogram {
        let mut below = 0;
        let buckets = (0..BOUNDED)
            .map(|index| {
                below += self.buckets[index];
                let mut bucket = proto::Bucket::default();
                bucket.set_upper_bound(Duration::from_micros(1 << index).as_secs_f64());
                bucket.set_cumulative_count(below);
                bucket
            })
            .collect();
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(self.count());
        histogram.set_sample_sum(Duration::from_nanos(self.nanos).as_secs_f64());
        histogram
    }
}

/// The bucket of a duration: the smallest power of two of a microsecond that is not below it.
#[inline]
const fn bucket(nanos: u64) -> usize {
    let micros = nanos.div_ceil(1_000);
    if micros <= 1 {
        return 0;
    }
    let index = (u64::BITS - (micros - 1).leading_zeros()) as usize;
    if index < BOUNDED { index } else { BOUNDED }
}

/// A number for each thread, given out in turn.
#[inline]
fn stripe_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) & (STRIPES_MAX - 1));
        }
        mine.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_with_its_bound() {
        for (nanos, index) in [
            (0, 0),
            (1_000, 0),
            (1_001, 1),
            (2_000, 1),
            (2_001, 2),
            (4_000, 2),
            (1_000 << 26, 26),
            ((1_000 << 26) + 1, BOUNDED),
            (u64::MAX, BOUNDED),
        ] {
            assert_eq!(bucket(nanos), index, "{nanos} ns");
        }
    }

    #[test]
    fn recordings_of_all_threads_add_up() {
        let timings = Timings::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1_000).for_each(|_| timings.record(Duration::from_micros(3))));
            }
        });
        let histogram = timings.totals().to_proto();
        assert_eq!(histogram.get_sample_count(), 8_000);
        assert!((histogram.get_sample_sum() - 0.024).abs() < 1e-9);
        let counts: Vec<u64> =
            histogram.get_bucket().iter().take(4).map(proto::Bucket::cumulative_count).collect();
        assert_eq!(counts, [0, 0, 8_000, 8_000]);
    }
}
