//! `process_*`: what the kernel knows about this process, read from `/proc` when asked.
//!
//! Where there is no `/proc` the family is empty. Units follow the Prometheus client guidelines.

use std::collections::HashMap;
use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::{Gauge, proto};

/// Ticks of `/proc/self/stat` in a second: fixed at 100 in the interface to programs (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

const FAMILIES: [(&str, &str); 6] = [
    ("process_cpu_seconds_total", "User and system time used"),
    ("process_resident_memory_bytes", "Memory in use"),
    ("process_virtual_memory_bytes", "Address space in use"),
    ("process_open_fds", "Open file descriptors"),
    ("process_max_fds", "Most open file descriptors"),
    ("process_start_time_seconds", "Start of the process since 1970-01-01 UTC"),
];

pub(super) struct ProcessCollector {
    descriptions: Vec<Desc>,
}

impl ProcessCollector {
    pub(super) fn new() -> Self {
        let description = |(name, help): &(&str, &str)| {
            Desc::new((*name).to_owned(), (*help).to_owned(), Vec::new(), HashMap::new())
                .expect("the names are valid")
        };
        Self { descriptions: FAMILIES.iter().map(description).collect() }
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let stat = Stat::read();
        let values = [
            stat.as_ref().and_then(|stat| Some(stat.ticks(11)? + stat.ticks(12)?)),
            status_bytes("VmRSS:"),
            status_bytes("VmSize:"),
            open_files(),
            files_max(),
            stat.as_ref().and_then(|stat| Some(boot_time()? + stat.ticks(19)?)),
        ];
        FAMILIES
            .iter()
            .zip(values)
            .filter_map(|((name, help), value)| Some(family(name, help, value?)))
            .collect()
    }
}

fn family(name: &str, help: &str, value: f64) -> proto::MetricFamily {
    let gauge = Gauge::new(name, help).expect("the names are valid");
    gauge.set(value);
    let mut family = gauge.collect().swap_remove(0);
    if name.ends_with("_total") {
        let mut counter = proto::Counter::default();
        counter.set_value(value);
        let mut metric = proto::Metric::default();
        metric.set_counter(counter);
        family.set_metric(vec![metric]);
        family.set_field_type(proto::MetricType::COUNTER);
    }
    family
}

/// `/proc/self/stat` after the name of the program, which may hold spaces and brackets.
struct Stat(Vec<String>);

impl Stat {
    fn read() -> Option<Self> {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        let (_, fields) = text.rsplit_once(')')?;
        Some(Self(fields.split_whitespace().map(str::to_owned).collect()))
    }

    /// A field in ticks, as seconds; numbered from 0 at the state.
    fn ticks(&self, index: usize) -> Option<f64> {
        Some(self.0.get(index)?.parse::<f64>().ok()? / TICKS_PER_SECOND)
    }
}

/// A line of `/proc/self/status` in kB, as bytes.
fn status_bytes(name: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0)
}

#[expect(clippy::cast_precision_loss, reason = "a process has far fewer than 2^52 files")]
fn open_files() -> Option<f64> {
    // The directory that is being read is one of them.
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn files_max() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Seconds since 1970-01-01 UTC at which the machine started.
fn boot_time() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
