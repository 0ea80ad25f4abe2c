//! The metrics of one server: typed handles for those who count, one registry for those who read.
//!
//! Names and labels are part of the public interface (dashboards and alerts are written against them): they are never
//! renamed. No label ever holds a key or anything else that callers choose.
//!
//! Cost: an operation is one lookup in an array and two relaxed atomic adds ([`Timings`]); `kvstore_operations_total` is
//! read from the same cells. What somebody else counts is set by callbacks when the metrics are read: gauges, and histograms
//! ([`KeptHistogram`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, proto};

use super::kept::KeptHistogram;
use super::process::ProcessCollector;
use super::timings::Timings;

/// Buckets with a bound of the time of a sync: the last ends at 2^26 us, 67 s.
const FSYNC_BOUNDED: usize = 27;

/// Buckets with a bound of the writes that shared a sync: the last ends at 2^11.
const GROUP_BOUNDED: usize = 12;

/// What a caller asked for: the label `op`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the operations of the public API by name")]
pub enum Op {
    Put,
    Get,
    Delete,
    BatchPut,
    BatchGet,
    Range,
    Scan,
    Stats,
}

impl Op {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Put,
        Self::Get,
        Self::Delete,
        Self::BatchPut,
        Self::BatchGet,
        Self::Range,
        Self::Scan,
        Self::Stats,
    ];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Delete => "delete",
            Self::BatchPut => "batch_put",
            Self::BatchGet => "batch_get",
            Self::Range => "range",
            Self::Scan => "scan",
            Self::Stats => "stats",
        }
    }
}

/// How it ended: the label `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered, also "there is no such key" and "the version differs".
    Ok,
    /// Refused, failed, or unknown.
    Error,
}

/// The cells of one operation.
#[derive(Default)]
pub struct Operation {
    ok: Timings,
    error: Timings,
}

impl Operation {
    /// Counts one operation and how long it took.
    #[inline]
    pub fn record(&self, outcome: Outcome, duration: Duration) {
        match outcome {
            Outcome::Ok => self.ok.record(duration),
            Outcome::Error => self.error.record(duration),
        }
    }
}

/// Sets gauges right before they are read. Must not block for long, and not read the metrics itself.
pub type OnScrape = Box<dyn Fn() + Send + Sync>;

/// All metrics of one server. Any thread may use any of it.
pub struct Metrics {
    registry: Registry,
    operations: Arc<[Operation; Op::ALL.len()]>,
    on_scrape: Mutex<Vec<Arc<OnScrape>>>,
    rejected: IntCounterVec,
    memory_usage: IntGaugeVec,
    disk_usage: IntGaugeVec,
    peer_sent: IntCounterVec,
    /// Requests of clients that are worked on.
    pub inflight_requests: IntGauge,
    /// Bytes of the requests of clients that are worked on.
    pub inflight_bytes: IntGauge,
    /// Keys that were found expired and removed.
    pub expired_keys: IntCounter,
    /// Writes answered from the result of an earlier one with the same request id.
    pub dedup_hits: IntCounter,
    /// Time of each sync of the log to stable storage, in microseconds.
    pub wal_fsync: KeptHistogram,
    /// Writes that shared one sync.
    pub wal_group_size: KeptHistogram,
    /// Log lines lost because nobody took them.
    pub log_lines_dropped: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero, in a registry of their own.
    pub fn new() -> Self {
        let registry = Registry::new();
        let operations: Arc<[Operation; Op::ALL.len()]> = Arc::default();
        let inflight_requests =
            gauges(&registry, "kvstore_inflight_requests", "Requests that are worked on", "hop");
        let inflight_bytes = gauges(
            &registry,
            "kvstore_inflight_bytes",
            "Bytes of the requests that are worked on",
            "hop",
        );
        let build = Opts::new("kvstore_build_info", "The build of this program; always 1")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("commit", env!("BUILD_GIT_COMMIT"));
        let build = IntGauge::with_opts(build).expect("the options are valid");
        build.set(1);
        register(&registry, &build);
        let fsync = ("kvstore_wal_fsync_duration_seconds", "Time of a sync of the log");
        let wal_fsync = KeptHistogram::new(fsync, 1e6, FSYNC_BOUNDED);
        let group_size = ("kvstore_wal_group_size", "Writes that shared one sync of the log");
        let wal_group_size = KeptHistogram::new(group_size, 1.0, GROUP_BOUNDED);
        for histogram in [&wal_fsync, &wal_group_size] {
            register(&registry, histogram);
        }
        let collector = OperationsCollector::new(Arc::clone(&operations));
        registry.register(Box::new(collector)).expect(UNIQUE);
        registry.register(Box::new(ProcessCollector::new())).expect(UNIQUE);

        let metrics = Self {
            operations,
            wal_fsync,
            on_scrape: Mutex::new(Vec::new()),
            rejected: counters(
                &registry,
                "kvstore_rejected_total",
                "Requests refused, by reason",
                "reason",
            ),
            memory_usage: gauges(&registry, "kvstore_memory_usage_bytes", "Memory in use", "kind"),
            disk_usage: gauges(&registry, "kvstore_disk_usage_bytes", "Disk space in use", "kind"),
            peer_sent: counters(
                &registry,
                "kvstore_peer_sent_bytes_total",
                "Bytes sent to other nodes",
                "kind",
            ),
            inflight_requests: inflight_requests.with_label_values(&["client"]),
            inflight_bytes: inflight_bytes.with_label_values(&["client"]),
            expired_keys: counter(&registry, "kvstore_expired_keys_total", "Expired keys removed"),
            dedup_hits: counter(
                &registry,
                "kvstore_dedup_hits_total",
                "Repeated writes answered from the first one's result",
            ),
            log_lines_dropped: counter(
                &registry,
                "kvstore_log_lines_dropped_total",
                "Log lines lost because nobody took them",
            ),
            wal_group_size,
            registry,
        };
        // Names that must exist do so from the beginning.
        for kind in ["cache", "memtable"] {
            metrics.memory_usage(kind);
        }
        for kind in ["log", "tables"] {
            metrics.disk_usage(kind);
        }
        for kind in ["messages", "files"] {
            metrics.peer_sent(kind);
        }
        metrics
    }

    /// The cells of `op`, for a caller to keep.
    #[inline]
    pub fn operation(&self, op: Op) -> &Operation {
        &self.operations[op as usize]
    }

    /// How often each operation was asked for, in whatever way it ended.
    pub fn operations(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Op::ALL.into_iter().map(|op| {
            let cells = self.operation(op);
            (op.as_str(), cells.ok.count() + cells.error.count())
        })
    }

    /// Counts a refused request by its reason, one of the words of the public API.
    pub fn rejected(&self, reason: &'static str) {
        self.rejected.with_label_values(&[reason]).inc();
    }

    /// The gauge of memory in use of a kind: `cache`, `memtable`.
    pub fn memory_usage(&self, kind: &'static str) -> IntGauge {
        self.memory_usage.with_label_values(&[kind])
    }

    /// The gauge of disk space in use of a kind: `log`, `tables`.
    pub fn disk_usage(&self, kind: &'static str) -> IntGauge {
        self.disk_usage.with_label_values(&[kind])
    }

    /// Bytes that were sent to other nodes, of a kind: `messages` (entries of the log above all), `files` (of snapshots).
    pub fn peer_sent(&self, kind: &'static str) -> IntCounter {
        self.peer_sent.with_label_values(&[kind])
    }

    /// Calls `callback` each time before the metrics are read.
    pub fn on_scrape(&self, callback: OnScrape) {
        self.on_scrape.lock().push(Arc::new(callback));
    }

    /// Adds metrics of another part; refused when a name is taken.
    pub fn register(&self, collector: Box<dyn Collector>) -> prometheus::Result<()> {
        self.registry.register(collector)
    }

    /// All metrics now, sorted by name.
    pub fn gather(&self) -> Vec<proto::MetricFamily> {
        // Cloned, so that a callback may run long or register others.
        let callbacks = self.on_scrape.lock().clone();
        for callback in callbacks {
            callback();
        }
        self.registry.gather()
    }
}

const UNIQUE: &str = "the registry is new and the names differ";

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: &C) {
    registry.register(Box::new(collector.clone())).expect(UNIQUE);
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let counter = IntCounter::new(name, help).expect("the name is valid");
    register(registry, &counter);
    counter
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    let counters = IntCounterVec::new(Opts::new(name, help), &[label]).expect("the name is valid");
    register(registry, &counters);
    counters
}

fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> IntGaugeVec {
    let gauges = IntGaugeVec::new(Opts::new(name, help), &[label]).expect("the name is valid");
    register(registry, &gauges);
    gauges
}

pub(super) fn desc((name, help): (&str, &str), labels: &[&str]) -> Desc {
    let labels = labels.iter().map(|label| (*label).to_owned()).collect();
    Desc::new(name.to_owned(), help.to_owned(), labels, HashMap::new()).expect("the name is valid")
}

pub(super) fn family(
    desc: &Desc,
    kind: proto::MetricType,
    metrics: Vec<proto::Metric>,
) -> proto::MetricFamily {
    let mut family = proto::MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

pub(super) fn labelled(labels: &[(&str, &str)]) -> proto::Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = proto::LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    proto::Metric::from_label(labels.iter().map(pair).collect())
}

/// Reads [`Operation`]s as a counter by op and outcome and a histogram by op.
struct OperationsCollector {
    operations: Arc<[Operation; Op::ALL.len()]>,
    total: Desc,
    duration: Desc,
}

impl OperationsCollector {
    fn new(operations: Arc<[Operation; Op::ALL.len()]>) -> Self {
        let total = ("kvstore_operations_total", "Operations by kind and outcome");
        let duration = ("kvstore_operation_duration_seconds", "Time of an operation on this node");
        Self {
            operations,
            total: desc(total, &["op", "outcome"]),
            duration: desc(duration, &["op"]),
        }
    }
}

impl Collector for OperationsCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.total, &self.duration]
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in f64")]
    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut counts = Vec::new();
        let mut durations = Vec::new();
        for (op, cells) in Op::ALL.iter().zip(self.operations.iter()) {
            let (ok, error) = (cells.ok.totals(), cells.error.totals());
            for (outcome, totals) in [("error", &error), ("ok", &ok)] {
                let mut counter = proto::Counter::default();
                counter.set_value(totals.count() as f64);
                let mut metric = labelled(&[("op", op.as_str()), ("outcome", outcome)]);
                metric.set_counter(counter);
                counts.push(metric);
            }
            let mut metric = labelled(&[("op", op.as_str())]);
            metric.set_histogram(ok.and(&error).to_proto());
            durations.push(metric);
        }
        vec![
            family(&self.total, proto::MetricType::COUNTER, counts),
            family(&self.duration, proto::MetricType::HISTOGRAM, durations),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;

    fn names(metrics: &Metrics) -> Vec<String> {
        metrics.gather().iter().map(|family| family.name().to_owned()).collect()
    }

    #[test]
    fn the_promised_names_exist_from_the_start() {
        let names = names(&Metrics::new());
        for name in [
            "kvstore_operations_total",
            "kvstore_memory_usage_bytes",
            "kvstore_disk_usage_bytes",
            "kvstore_operation_duration_seconds",
            "kvstore_inflight_requests",
            "kvstore_build_info",
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
        ] {
            assert!(names.iter().any(|known| known == name), "{name} is missing in {names:?}");
        }
        assert!(names.is_sorted());
    }

    #[test]
    fn operations_are_counted_by_kind_and_outcome() {
        let metrics = Metrics::new();
        metrics.operation(Op::Get).record(Outcome::Ok, Duration::from_micros(10));
        metrics.operation(Op::Get).record(Outcome::Error, Duration::from_micros(10));
        metrics.operation(Op::Scan).record(Outcome::Ok, Duration::from_secs(100));
        let text = metrics.text(&|name: &str| name.starts_with("kvstore_operation"));
        for line in [
            "kvstore_operations_total{op=\"get\",outcome=\"ok\"} 1",
            "kvstore_operations_total{op=\"get\",outcome=\"error\"} 1",
            "kvstore_operations_total{op=\"scan\",outcome=\"ok\"} 1",
            "kvstore_operation_duration_seconds_bucket{op=\"get\",le=\"0.000008\"} 0",
            "kvstore_operation_duration_seconds_bucket{op=\"get\",le=\"0.000016\"} 2",
            "kvstore_operation_duration_seconds_bucket{op=\"scan\",le=\"67.108864\"} 0",
            "kvstore_operation_duration_seconds_bucket{op=\"scan\",le=\"+Inf\"} 1",
            "kvstore_operation_duration_seconds_count{op=\"scan\"} 1",
            "kvstore_operation_duration_seconds_sum{op=\"scan\"} 100",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn gauges_are_set_when_they_are_read() {
        let metrics = Metrics::new();
        let gauge = metrics.memory_usage("cache");
        metrics.on_scrape(Box::new(move || gauge.set(42)));
        let text = metrics.text(&|name: &str| name == "kvstore_memory_usage_bytes");
        assert!(text.contains("kvstore_memory_usage_bytes{kind=\"cache\"} 42\n"), "{text}");
    }

    /// Measured 8 to 12 ns in release on one thread, the reason that nothing is sampled; generous here for busy
    /// machines, and only checked where the optimiser ran.
    #[test]
    fn recording_a_get_is_cheap() {
        const ROUNDS: u32 = 1_000_000;
        let metrics = Metrics::new();
        let get = metrics.operation(Op::Get);
        let best = (0..5)
            .map(|_| {
                let start = Instant::now();
                for round in 0..ROUNDS {
                    get.record(Outcome::Ok, black_box(Duration::from_nanos(u64::from(round))));
                }
                start.elapsed() / ROUNDS
            })
            .min();
        println!("recording one operation takes {best:?}");
        assert!(cfg!(debug_assertions) || best < Some(Duration::from_nanos(100)), "{best:?}");
        assert_eq!(get.ok.count(), u64::from(5 * ROUNDS));
    }
}
