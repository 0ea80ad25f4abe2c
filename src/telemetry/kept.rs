//! Histograms that another part keeps, shown as metrics. The log counts its syncs by itself (`wal`), for it knows nothing of
//! metrics; whoever puts the two together sets what the log has counted right before it is read.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::metrics::{desc, family, labelled};

/// A histogram by powers of two, as it was set last. A handle: clones are the same histogram.
///
/// Bucket `n` is said to hold the values up to and including `2^n` that are above the bucket before; what lies beyond the last bound that is
/// shown counts as above all. Values are whole numbers of a small unit, bounds and sum are shown in a larger one.
#[derive(Clone)]
pub struct KeptHistogram {
    desc: Desc,
    units_in_one: f64,
    bounded: usize,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    buckets: Vec<u64>,
    sum: u64,
}

impl Kept {
    fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl KeptHistogram {
    /// An empty one with `bounded` buckets and one above; `units_in_one` of what is counted make one of what is shown.
    pub(super) fn new(name_and_help: (&str, &str), units_in_one: f64, bounded: usize) -> Self {
        Self { desc: desc(name_and_help, &[]), units_in_one, bounded, kept: Arc::default() }
    }

    /// Replaces what is shown. Of two readers at the same time the one that was overtaken changes nothing: a count that goes back is taken
    /// for a restart.
    pub fn set(&self, buckets: &[u64], sum: u64) {
        let mut kept = self.kept.lock();
        if buckets.iter().sum::<u64>() >= kept.count() {
            *kept = Kept { buckets: buckets.to_vec(), sum };
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus sums in f64")]
    fn to_proto(&self) -> proto::Histogram {
        let kept = self.kept.lock();
        let (mut bound, mut below) = (1.0, 0);
        let buckets = (0..self.bounded).map(|number| {
            below += kept.buckets.get(number).copied().unwrap_or_default();
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound / self.units_in_one);
            bucket.set_cumulative_count(below);
            bound *= 2.0;
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(kept.count());
        histogram.set_sample_sum(kept.sum as f64 / self.units_in_one);
        histogram
    }
}

impl Collector for KeptHistogram {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut metric = labelled(&[]);
        metric.set_histogram(self.to_proto());
        vec![family(&self.desc, proto::MetricType::HISTOGRAM, vec![metric])]
    }
}

#[cfg(test)]
mod tests {
    use crate::telemetry::Metrics;

    #[test]
    fn counts_of_another_part_are_shown_as_they_were_set_last() {
        let metrics = Metrics::new();
        let name = "kvstore_wal_fsync_duration_seconds";
        let empty = metrics.text(&|known: &str| known == name);
        assert!(empty.contains(&format!("{name}_count 0\n")), "{empty}");

        let mut micros = [0; 32];
        (micros[0], micros[3], micros[26], micros[31]) = (1, 2, 3, 4);
        let shown = metrics.wal_fsync.clone();
        metrics.on_scrape(Box::new(move || shown.set(&micros, 2_500_000)));
        let text = metrics.text(&|known: &str| known == name);
        for line in [
            format!("# TYPE {name} histogram"),
            format!("{name}_bucket{{le=\"0.000001\"}} 1"),
            format!("{name}_bucket{{le=\"0.000004\"}} 1"),
            format!("{name}_bucket{{le=\"0.000008\"}} 3"),
            format!("{name}_bucket{{le=\"33.554432\"}} 3"),
            format!("{name}_bucket{{le=\"67.108864\"}} 6"),
            format!("{name}_bucket{{le=\"+Inf\"}} 10"),
            format!("{name}_sum 2.5"),
            format!("{name}_count 10"),
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn every_group_is_below_its_bound() {
        let metrics = Metrics::new();
        metrics.wal_group_size.set(&[5, 0, 1], 9);
        // A reader that asked before and was overtaken.
        metrics.wal_group_size.set(&[5], 5);
        let text = metrics.text(&|known: &str| known == "kvstore_wal_group_size");
        for line in [
            "kvstore_wal_group_size_bucket{le=\"1\"} 5",
            "kvstore_wal_group_size_bucket{le=\"2\"} 5",
            "kvstore_wal_group_size_bucket{le=\"4\"} 6",
            "kvstore_wal_group_size_bucket{le=\"2048\"} 6",
            "kvstore_wal_group_size_bucket{le=\"+Inf\"} 6",
            "kvstore_wal_group_size_sum 9",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is missing in\n{text}");
        }
    }
}
