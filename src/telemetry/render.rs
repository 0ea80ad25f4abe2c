//! The metrics as others want them: Prometheus text 0.0.4, OpenMetrics 1.0, and the measurements of Spring's
//! `/actuator/metrics/{name}`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use prometheus::proto::{Metric, MetricFamily, MetricType};
use prometheus::{Encoder as _, TextEncoder};

use super::metrics::Metrics;

/// Units that the last word of a name may state; `_total` does not count.
const UNITS: [&str; 8] =
    ["bytes", "seconds", "operations", "requests", "keys", "hits", "entries", "fds"];

/// One metric as Spring shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Its name.
    pub name: String,
    /// What it is.
    pub description: String,
    /// What it counts, where the name says so.
    pub base_unit: Option<&'static str>,
    /// The sums over all series that match.
    pub measurements: Measurements,
    /// Labels that were not chosen yet, with their values.
    pub available_tags: BTreeMap<String, BTreeSet<String>>,
}

/// The values of a [`Reading`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measurements {
    /// Of a counter.
    Count(f64),
    /// Of a gauge.
    Value(f64),
    /// Of a histogram: how many, their sum, and a bound of the largest. The bound is that of the highest bucket in use,
    /// for buckets are all that is kept; it is exact for a single value.
    Distribution {
        /// How many.
        count: f64,
        /// Their sum.
        total: f64,
        /// No value is larger, but for those above all buckets.
        max: f64,
    },
}

/// Why there is no [`Reading`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No metric of this name.
    UnknownName,
    /// No series with these tags.
    UnknownTag,
}

impl Metrics {
    /// Prometheus text 0.0.4 of the families whose name is `wanted`.
    pub fn text(&self, wanted: &dyn Fn(&str) -> bool) -> String {
        let mut text = Vec::new();
        let families = self.wanted(wanted);
        TextEncoder::new().encode(&families, &mut text).expect("writing into memory");
        String::from_utf8(text).expect("the encoder writes UTF-8")
    }

    /// OpenMetrics 1.0 of the families whose name is `wanted`.
    pub fn open_metrics(&self, wanted: &dyn Fn(&str) -> bool) -> String {
        let mut text = String::new();
        for family in self.wanted(wanted) {
            open_metrics_family(&mut text, &family);
        }
        text.push_str("# EOF\n");
        text
    }

    fn wanted(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<MetricFamily> {
        self.gather().into_iter().filter(|family| wanted(family.name())).collect()
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.gather().iter().map(|family| family.name().to_owned()).collect()
    }

    /// One metric, summed over the series that carry all `tags` (name and value).
    pub fn reading(&self, name: &str, tags: &[(&str, &str)]) -> Result<Reading, Refusal> {
        let families = self.gather();
        let family =
            families.iter().find(|family| family.name() == name).ok_or(Refusal::UnknownName)?;
        let matches = |metric: &&Metric| {
            tags.iter().all(|(tag, value)| {
                metric.get_label().iter().any(|pair| pair.name() == *tag && pair.value() == *value)
            })
        };
        let series: Vec<&Metric> = family.get_metric().iter().filter(matches).collect();
        if series.is_empty() {
            return Err(Refusal::UnknownTag);
        }
        let mut available_tags: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for pair in series.iter().flat_map(|metric| metric.get_label()) {
            if tags.iter().all(|(chosen, _)| *chosen != pair.name()) {
                let values = available_tags.entry(pair.name().to_owned()).or_default();
                values.insert(pair.value().to_owned());
            }
        }
        Ok(Reading {
            name: name.to_owned(),
            description: family.help().to_owned(),
            base_unit: base_unit(name),
            measurements: measure(family.get_field_type(), &series),
            available_tags,
        })
    }
}

fn base_unit(name: &str) -> Option<&'static str> {
    let name = name.strip_suffix("_total").unwrap_or(name);
    let (_, last) = name.rsplit_once('_')?;
    UNITS.iter().find(|unit| **unit == last).copied()
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus and Spring count in f64")]
fn measure(kind: MetricType, series: &[&Metric]) -> Measurements {
    match kind {
        MetricType::HISTOGRAM => {
            let histograms = || series.iter().map(|metric| metric.get_histogram());
            let max = histograms().map(|histogram| {
                let full = histogram.get_sample_count();
                // The lowest bucket that holds all, or the highest there is.
                let buckets = histogram.get_bucket();
                let top = buckets.iter().find(|bucket| bucket.cumulative_count() == full);
                let bound =
                    top.or(buckets.last()).map_or(0.0, prometheus::proto::Bucket::upper_bound);
                bound.min(histogram.get_sample_sum())
            });
            Measurements::Distribution {
                count: histograms().map(|histogram| histogram.get_sample_count() as f64).sum(),
                total: histograms().map(prometheus::proto::Histogram::get_sample_sum).sum(),
                max: max.fold(0.0, f64::max),
            }
        }
        MetricType::COUNTER => {
            Measurements::Count(series.iter().map(|metric| metric.get_counter().get_value()).sum())
        }
        _ => Measurements::Value(series.iter().map(|metric| metric.get_gauge().get_value()).sum()),
    }
}

/// One family: a counter is named without `_total`, its sample with it.
fn open_metrics_family(text: &mut String, family: &MetricFamily) {
    let name = family.name();
    let (kind, base) = match family.get_field_type() {
        MetricType::COUNTER => ("counter", name.strip_suffix("_total").unwrap_or(name)),
        MetricType::HISTOGRAM => ("histogram", name),
        _ => ("gauge", name),
    };
    let help = escaped(family.help());
    let _ = writeln!(text, "# TYPE {base} {kind}\n# HELP {base} {help}");
    for metric in family.get_metric() {
        match kind {
            "counter" => sample(
                text,
                &format!("{base}_total"),
                metric,
                None,
                metric.get_counter().get_value(),
            ),
            "histogram" => histogram(text, base, metric),
            _ => sample(text, base, metric, None, metric.get_gauge().get_value()),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in f64")]
fn histogram(text: &mut String, base: &str, metric: &Metric) {
    let histogram = metric.get_histogram();
    let name = format!("{base}_bucket");
    for bucket in histogram.get_bucket() {
        // OpenMetrics wants a float here: `1.0`, not `1`.
        let bound = format!("{:?}", bucket.upper_bound());
        sample(text, &name, metric, Some(&bound), bucket.cumulative_count() as f64);
    }
    let count = histogram.get_sample_count() as f64;
    sample(text, &name, metric, Some("+Inf"), count);
    sample(text, &format!("{base}_count"), metric, None, count);
    sample(text, &format!("{base}_sum"), metric, None, histogram.get_sample_sum());
}

fn sample(text: &mut String, name: &str, metric: &Metric, le: Option<&str>, value: f64) {
    let labels = metric.get_label().iter().map(|pair| (pair.name(), pair.value()));
    let labels: Vec<String> = labels
        .chain(le.map(|bound| ("le", bound)))
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    let labels =
        if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(text, "{name}{labels} {value}");
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::{Op, Outcome};

    fn recorded() -> Metrics {
        let metrics = Metrics::new();
        for _ in 0..3 {
            metrics.operation(Op::Get).record(Outcome::Ok, Duration::from_micros(10));
        }
        metrics.operation(Op::Put).record(Outcome::Error, Duration::from_micros(100));
        metrics.rejected("OVERLOADED");
        metrics
    }

    #[test]
    fn open_metrics_names_counters_without_total_and_ends() {
        let metrics = recorded();
        let text = metrics.open_metrics(&|name: &str| name == "kvstore_rejected_total");
        let expected = "# TYPE kvstore_rejected counter\n# HELP kvstore_rejected Requests refused, by reason\n\
                        kvstore_rejected_total{reason=\"OVERLOADED\"} 1\n# EOF\n";
        assert_eq!(text, expected);
        let text = metrics.open_metrics(&|name: &str| name == "kvstore_wal_group_size");
        assert!(text.contains("kvstore_wal_group_size_bucket{le=\"1.0\"} 0\n"), "{text}");
        assert!(text.ends_with("kvstore_wal_group_size_sum 0\n# EOF\n"), "{text}");
    }

    #[test]
    fn a_reading_sums_what_matches_and_offers_the_other_tags() {
        let metrics = recorded();
        let all = metrics.reading("kvstore_operations_total", &[]).expect("it exists");
        assert_eq!(all.measurements, Measurements::Count(4.0));
        assert_eq!(all.base_unit, Some("operations"));
        assert!(all.available_tags["op"].contains("get"));
        let tags = [("op", "get"), ("outcome", "ok")];
        let get = metrics.reading("kvstore_operations_total", &tags).expect("it exists");
        assert_eq!(get.measurements, Measurements::Count(3.0));
        assert!(get.available_tags.is_empty());
        assert_eq!(metrics.reading("nothing", &[]), Err(Refusal::UnknownName));
        let unknown = metrics.reading("kvstore_operations_total", &[("op", "fly")]);
        assert_eq!(unknown, Err(Refusal::UnknownTag));
    }

    #[test]
    fn a_distribution_tells_count_total_and_a_bound_of_the_largest() {
        let metrics = recorded();
        let read = |op| metrics.reading("kvstore_operation_duration_seconds", &[("op", op)]);
        let put = read("put").expect("it exists").measurements;
        assert_eq!(put, Measurements::Distribution { count: 1.0, total: 0.000_1, max: 0.000_1 });
        let Measurements::Distribution { count, total, max } =
            read("get").expect("it exists").measurements
        else {
            panic!("a histogram is a distribution")
        };
        assert!((count, max) == (3.0, 0.000_016) && (total - 0.000_03).abs() < 1e-12);
    }
}
