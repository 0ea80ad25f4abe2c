//! What is printed: one table for people, one JSON object for programs. Both tell the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::args::{Plan, name};
use super::round::Measured;
use super::tally::{Failed, Tally};
use super::wire::Target;

/// Everything that a run has measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    settings: Settings,
    seed: u64,
    /// Whether it ended before its time.
    interrupted: bool,
    product: Side,
    /// The no-op on the same stack.
    echo: Option<Side>,
    /// Product to echo.
    ratio: Option<Ratios>,
}

#[derive(Debug, Clone, Serialize)]
struct Settings {
    transport: String,
    workload: String,
    distribution: String,
    keys: u64,
    key_bytes: usize,
    value_bytes: usize,
    connections: usize,
    in_flight: usize,
    threads: usize,
    /// Operations in a second of the open loop; absent: a closed loop.
    rate: Option<f64>,
    duration_seconds: f64,
    warmup_seconds: f64,
}

/// What was measured of one target.
#[derive(Debug, Clone, Default, Serialize)]
struct Side {
    operations: u64,
    errors: BTreeMap<String, Failed>,
    conflicts: u64,
    /// Due and never sent; they are in the latencies with their wait, and no operations.
    unsent: u64,
    /// Operations in a second.
    rate: Spread,
    /// Microseconds for an operation.
    client_cpu_us: Spread,
    server_cpu_us: Option<Spread>,
    /// Of all rounds together, by kind.
    latency_us: BTreeMap<&'static str, Latency>,
    rounds: Vec<RoundFigures>,
    #[serde(skip)]
    tally: Tally,
}

/// Over the rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Latency {
    count: u64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    p99_99: f64,
    max: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct RoundFigures {
    operations: u64,
    seconds: f64,
    rate: f64,
    client_cpu_us: f64,
    server_cpu_us: Option<f64>,
    p50_us: f64,
    p99_us: f64,
}

/// The ratio of the medians, and the smallest and largest of a pair of neighbouring rounds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Ratios {
    rate: Ratio,
    server_cpu: Option<Ratio>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Ratio {
    of_medians: f64,
    min: f64,
    max: f64,
}

impl Report {
    pub(super) fn new(plan: &Plan) -> Self {
        let settings = Settings {
            transport: name(&plan.transport),
            workload: name(&plan.workload),
            distribution: name(&plan.distribution),
            keys: plan.keys,
            key_bytes: plan.key_bytes,
            value_bytes: plan.value_bytes,
            connections: plan.connections,
            in_flight: plan.in_flight,
            threads: plan.threads,
            rate: plan.rate,
            duration_seconds: plan.duration.as_secs_f64(),
            warmup_seconds: plan.warmup.as_secs_f64(),
        };
        Self {
            settings,
            seed: plan.seed,
            interrupted: false,
            product: Side::default(),
            echo: None,
            ratio: None,
        }
    }

    /// Adds what one round has measured, of each target.
    pub(super) fn add(&mut self, measured: Vec<(Target, Measured)>) {
        for (target, measured) in measured {
            match target {
                Target::Product => self.product.add(measured),
                Target::Echo => self.echo.get_or_insert_default().add(measured),
            }
        }
        self.ratio = self.echo.as_ref().and_then(|echo| Ratios::of(&self.product, echo));
    }

    pub(super) fn interrupted(&mut self) {
        self.interrupted = true;
    }

    /// Operations that failed, of both targets.
    pub(super) fn errors(&self) -> u64 {
        self.product.tally.errors() + self.echo.as_ref().map_or(0, |echo| echo.tally.errors())
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("names are strings")
    }

    pub(super) fn to_text(&self) -> String {
        let mut out = String::new();
        self.write_head(&mut out);
        let sides: Vec<(&str, &Side)> = std::iter::once(("product", &self.product))
            .chain(self.echo.as_ref().map(|echo| ("echo", echo)))
            .collect();
        write_row(&mut out, "", sides.iter().map(|(name, _)| (*name).to_owned()));
        write_row(&mut out, "operations/s", sides.iter().map(|(_, side)| whole(side.rate.median)));
        write_row(&mut out, "  lowest round", sides.iter().map(|(_, side)| whole(side.rate.min)));
        write_row(&mut out, "  highest round", sides.iter().map(|(_, side)| whole(side.rate.max)));
        let cpu = |spread: Option<Spread>| {
            spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.2}", spread.median))
        };
        let server = sides.iter().map(|(_, side)| cpu(side.server_cpu_us));
        write_row(&mut out, "server CPU, us/operation", server);
        let client = sides.iter().map(|(_, side)| cpu(Some(side.client_cpu_us)));
        write_row(&mut out, "client CPU, us/operation", client);
        for (name, side) in &sides {
            write_latencies(&mut out, name, side);
        }
        for (name, side) in &sides {
            write_failures(&mut out, name, side);
        }
        if let Some(ratio) = &self.ratio {
            let Ratio { of_medians, min, max } = ratio.rate;
            let _ = writeln!(
                out,
                "\nproduct / echo: {of_medians:.3} of its rate ({min:.3} to {max:.3} over {} pairs of rounds)",
                self.product.rounds.len()
            );
            if let Some(Ratio { of_medians, min, max }) = ratio.server_cpu {
                let _ = writeln!(
                    out,
                    "                {of_medians:.3} of its server CPU ({min:.3} to {max:.3})"
                );
            }
        }
        if self.interrupted {
            out.push_str("\ninterrupted: these are the figures until then\n");
        }
        out.truncate(out.trim_end().len());
        out
    }

    fn write_head(&self, out: &mut String) {
        let Settings { transport, workload, distribution, keys, .. } = &self.settings;
        let Settings { key_bytes, value_bytes, connections, in_flight, threads, rate, .. } =
            &self.settings;
        let _ = writeln!(
            out,
            "{workload} over {transport}: {keys} keys of {key_bytes} bytes, {distribution}; values of {value_bytes} bytes"
        );
        let kind = match rate {
            None => format!("closed loop, {in_flight} in flight"),
            Some(rate) => format!("open loop, {rate} in a second, at most {in_flight} in flight"),
        };
        let _ = writeln!(
            out,
            "{kind} on {connections} connections and {threads} threads; {} rounds of {:?}; seed {}\n",
            self.product.rounds.len(),
            Duration::from_secs_f64(self.settings.duration_seconds),
            self.seed
        );
    }
}

fn write_row(out: &mut String, name: &str, cells: impl Iterator<Item = String>) {
    let _ = write!(out, "{name:<26}");
    for cell in cells {
        let _ = write!(out, "{cell:>14}");
    }
    out.push('\n');
}

fn write_latencies(out: &mut String, name: &str, side: &Side) {
    let title = format!("{name}: latency, us");
    let _ = writeln!(
        out,
        "\n{title:<26}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "count", "mean", "p50", "p90", "p99", "p99.9", "max"
    );
    for (kind, latency) in &side.latency_us {
        let Latency { count, mean, p50, p90, p99, p99_9, max, .. } = latency;
        let _ = writeln!(
            out,
            "  {kind:<24}{count:>12}{mean:>10.1}{p50:>10.1}{p90:>10.1}{p99:>10.1}{p99_9:>10.1}{max:>10.1}"
        );
    }
}

fn write_failures(out: &mut String, name: &str, side: &Side) {
    for (failure, Failed { count, example }) in &side.errors {
        let _ = writeln!(out, "\n{name}: {count} failed with {failure}, for example: {example}");
    }
    if side.conflicts > 0 {
        let _ = writeln!(out, "\n{name}: {} conditions on a version did not hold", side.conflicts);
    }
    if side.unsent > 0 {
        let _ = writeln!(
            out,
            "\n{name}: {} operations were due and not sent by the end of their round; their wait until then is in the latencies",
            side.unsent
        );
    }
}

/// A whole number with its thousands apart.
fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl Side {
    fn add(&mut self, measured: Measured) {
        let Measured { tally, time, client_cpu, server_cpu } = measured;
        let operations = tally.operations();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let count = operations.max(1) as f64;
        let all = tally.all();
        let seconds = time.as_secs_f64();
        let each = |cpu: Duration| round(cpu.as_secs_f64() * 1e6 / count);
        self.rounds.push(RoundFigures {
            operations,
            seconds: round(seconds),
            rate: if operations == 0 || seconds == 0.0 { 0.0 } else { round(count / seconds) },
            client_cpu_us: each(client_cpu),
            server_cpu_us: server_cpu.map(each),
            p50_us: micros(all.value_at_quantile(0.5)),
            p99_us: micros(all.value_at_quantile(0.99)),
        });
        self.tally.merge(tally);
        self.operations = self.tally.operations();
        self.errors = self.tally.failures.clone();
        self.conflicts = self.tally.conflicts;
        self.unsent = self.tally.unsent;
        self.rate = self.spread(|round| Some(round.rate)).unwrap_or_default();
        self.client_cpu_us = self.spread(|round| Some(round.client_cpu_us)).unwrap_or_default();
        self.server_cpu_us = self.spread(|round| round.server_cpu_us);
        let kinds = self.tally.kinds().map(|(kind, latencies)| (kind.name(), latencies.clone()));
        let kinds: BTreeMap<_, _> = kinds.chain([("all", self.tally.all())]).collect();
        self.latency_us =
            kinds.into_iter().map(|(kind, latencies)| (kind, Latency::of(&latencies))).collect();
    }

    fn spread(&self, figure: impl Fn(&RoundFigures) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(figure).collect())
    }
}

impl Spread {
    fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (min, max) = (*figures.first()?, *figures.last()?);
        let middle = figures.len() / 2;
        let median = if figures.len() % 2 == 1 {
            figures[middle]
        } else {
            f64::midpoint(figures[middle - 1], figures[middle])
        };
        Some(Self { median: round(median), min, max })
    }
}

impl Latency {
    fn of(latencies: &Histogram<u64>) -> Self {
        let at = |quantile| micros(latencies.value_at_quantile(quantile));
        Self {
            count: latencies.len(),
            mean: round(latencies.mean() / 1e3),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: micros(latencies.max()),
        }
    }
}

impl Ratios {
    fn of(product: &Side, echo: &Side) -> Option<Self> {
        let ratio = |figure: fn(&RoundFigures) -> Option<f64>| {
            let medians = product.spread(figure)?.median / echo.spread(figure)?.median;
            let pairs = product.rounds.iter().zip(&echo.rounds);
            let pairs = pairs.filter_map(|(one, other)| Some(figure(one)? / figure(other)?));
            let pairs = Spread::of(pairs.collect())?;
            let finite = medians.is_finite() && pairs.min.is_finite() && pairs.max.is_finite();
            finite.then(|| Ratio {
                of_medians: round(medians),
                min: round(pairs.min),
                max: round(pairs.max),
            })
        };
        Some(Self {
            rate: ratio(|round| Some(round.rate))?,
            server_cpu: ratio(|round| round.server_cpu_us),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^53 ns")]
fn micros(nanos: u64) -> f64 {
    round(nanos as f64 / 1e3)
}

/// To three digits behind the point: more would only look exact.
fn round(figure: f64) -> f64 {
    (figure * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::super::tally::Failure;
    use super::super::workload::Kind;
    use super::*;

    fn plan() -> Plan {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            args: super::super::Args,
        }
        let program =
            <Program as clap::Parser>::try_parse_from(["bench", "--seed", "7"]).expect("legal");
        program.args.plan().expect("legal")
    }

    fn measured(operations: u64, server_micros: u64) -> Measured {
        let mut tally = Tally::default();
        for number in 0..operations {
            tally.record(Kind::Get, Duration::from_micros(100 + number % 10), Ok(()));
        }
        Measured {
            tally,
            time: Duration::from_secs(1),
            client_cpu: Duration::from_micros(3 * operations),
            server_cpu: Some(Duration::from_micros(server_micros * operations)),
        }
    }

    fn report() -> Report {
        let mut report = Report::new(&plan());
        for (product, echo) in [(800, 1_000), (900, 1_000), (450, 500)] {
            report.add(vec![
                (Target::Product, measured(product, 10)),
                (Target::Echo, measured(echo, 8)),
            ]);
        }
        report
    }

    #[test]
    fn the_ratio_is_of_medians_and_its_spread_of_pairs() {
        let ratio = report().ratio.expect("both were measured");
        assert_eq!(ratio.rate, Ratio { of_medians: 0.8, min: 0.8, max: 0.9 });
        let cpu = ratio.server_cpu.expect("it was measured");
        assert_eq!(cpu, Ratio { of_medians: 1.25, min: 1.25, max: 1.25 });
    }

    #[test]
    fn the_json_has_these_members() {
        let mut report = report();
        let mut failed = measured(10, 1);
        failed.tally.fail(&Failure::Status(5, "not there".to_owned()));
        report.add(vec![(Target::Product, failed)]);
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).expect("JSON");
        assert_eq!(json["seed"], 7);
        assert_eq!(json["interrupted"], false);
        assert_eq!(json["settings"]["transport"], "unary");
        assert_eq!(json["settings"]["rate"], serde_json::Value::Null);
        assert_eq!(json["product"]["operations"], 2_160);
        assert_eq!(json["product"]["errors"]["NOT_FOUND"]["count"], 1);
        assert_eq!(json["product"]["rounds"].as_array().map(Vec::len), Some(4));
        assert_eq!(json["echo"]["rate"]["median"], 1000.0);
        assert_eq!(json["echo"]["server_cpu_us"]["median"], 8.0);
        for figure in ["count", "mean", "p50", "p90", "p99", "p99_9", "p99_99", "max"] {
            assert!(json["product"]["latency_us"]["all"][figure].is_number(), "{figure}");
            assert!(json["product"]["latency_us"]["get"][figure].is_number(), "{figure}");
        }
        assert!(json["ratio"]["rate"]["of_medians"].is_number());
        assert_eq!(report.errors(), 1);
    }

    #[test]
    fn the_text_tells_rate_cpu_latency_ratio_and_seed() {
        let text = report().to_text();
        for part in [
            "get over unary",
            "64 in flight",
            "seed 7",
            "operations/s",
            "server CPU",
            "p99.9",
            "product / echo: 0.800 of its rate (0.800 to 0.900 over 3 pairs of rounds)",
            "1.250 of its server CPU",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn a_run_without_a_single_operation_is_a_report_too() {
        let mut report = Report::new(&plan());
        report
            .add(vec![(Target::Product, Measured::default()), (Target::Echo, Measured::default())]);
        assert!(report.ratio.is_none());
        assert!(report.to_text().contains("operations/s"));
        assert!(serde_json::from_str::<serde_json::Value>(&report.to_json()).is_ok());
        Report::new(&plan()).to_text();
    }

    #[test]
    fn thousands_stand_apart() {
        for (number, text) in
            [(0.0, "0"), (999.4, "999"), (1_000.0, "1,000"), (1_234_567.0, "1,234,567")]
        {
            assert_eq!(whole(number), text);
        }
    }
}
