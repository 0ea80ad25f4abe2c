//! The arguments of `kvstore bench`, and the plan that follows from them once they are checked.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::Error;
use super::wire::{KEY_PREFIX, Messages};
use super::workload::Mix;
use crate::net::Endpoint;

/// Bounds that keep the client's memory in bounds too.
const IN_FLIGHT_MAX: usize = 100_000;
const CONNECTIONS_MAX: usize = 10_000;
const THREADS_MAX: usize = 256;
const VALUE_BYTES_MAX: u64 = 1 << 20;
const KEY_BYTES_MAX: usize = crate::types::KEY_BYTES_MAX;
const ROUNDS_MAX: u32 = 1_000;
const RATE_MAX: f64 = 1e8;

/// Measures a running server, or one of its own, under load.
#[derive(Debug, Clone, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct Args {
    /// gRPC address; repeat it to spread the connections over a cluster.
    #[arg(long, value_name = "URL", env = "KVSTORE_ENDPOINTS", value_delimiter = ',',
          default_value = Endpoint::DEFAULT)]
    pub endpoint: Vec<Endpoint>,
    /// HTTP address, for `--transport rest`; may be repeated.
    #[arg(
        long,
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8080"
    )]
    pub http_endpoint: Vec<Endpoint>,
    /// Start a server of this program for the measurement, on free ports of this machine: the memory engine and a temporary
    /// directory, unless `--set` says otherwise.
    #[arg(long = "self")]
    pub own_server: bool,
    /// A setting of that server.
    #[arg(long, value_name = "KEY=VALUE", requires = "own_server")]
    pub set: Vec<String>,
    /// Process of a server on this machine, to tell its CPU time for an operation.
    #[arg(long, value_name = "PID", conflicts_with = "own_server")]
    pub server_pid: Option<u32>,
    /// How operations travel.
    #[arg(long, value_enum, default_value_t = Transport::Unary)]
    pub transport: Transport,
    /// What is done.
    #[arg(long, value_enum, default_value_t = Workload::Get)]
    pub workload: Workload,
    /// Run the same load against a no-op on the same stack, in alternating rounds, and print the ratio.
    #[arg(long)]
    pub echo: bool,
    /// Keys in the store before the measurement.
    #[arg(long, default_value_t = 100_000)]
    pub keys: u64,
    /// Take the keys as they are instead of storing them first; they must come from a run with the same sizes.
    #[arg(long)]
    pub no_preload: bool,
    /// Bytes of a key.
    #[arg(long, default_value_t = 16)]
    pub key_size: usize,
    /// Bytes of a value, which is JSON text of exactly that size; takes units.
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = size)]
    pub value_size: u64,
    /// Which keys; by default what YCSB uses for the workload, uniform for the others.
    #[arg(long, value_enum)]
    pub distribution: Option<Distribution>,
    /// Longest range, in items; the lengths are uniform from 1 to this.
    #[arg(long, value_name = "ITEMS", default_value_t = 100)]
    pub range_max: u32,
    /// Make the write of a read-modify-write depend on the version that was read. A mismatch counts as a conflict, not as an error.
    #[arg(long)]
    pub if_version: bool,
    /// Connections, over all threads. REST has one for each operation in flight instead.
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Operations in flight, over all connections together. In an open loop: at most so many.
    #[arg(long, default_value_t = 64)]
    pub in_flight: usize,
    /// Open loop: operations in a second, over all connections together. Absent: closed loop.
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// Threads of the client.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Time of a round; takes units.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub duration: Duration,
    /// Rounds, whose median is told.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Time of the round before the first, which does not count; takes units.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub warmup: Duration,
    /// Where the random choices begin; the same number makes the same choices. Absent: another one each time, which is printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Fail when more operations than this did.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub errors_max: u64,
    /// How the figures are printed.
    #[arg(long, short, env = "KVSTORE_OUTPUT", value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// How operations travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// A gRPC call for each.
    Unary,
    /// One gRPC stream of operations for each connection.
    Session,
    /// HTTP/1.1 with JSON.
    Rest,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Reads only.
    Get,
    /// Overwrites only.
    Put,
    /// Short ranges only.
    Range,
    /// Half reads, half updates.
    YcsbA,
    /// 95 % reads, 5 % updates.
    YcsbB,
    /// Reads only, of skewed keys.
    YcsbC,
    /// 95 % reads of the newest keys, 5 % new keys.
    YcsbD,
    /// 95 % short ranges, 5 % new keys.
    YcsbE,
    /// Half reads, half read-modify-writes.
    YcsbF,
}

/// Which keys are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// All alike.
    Uniform,
    /// A few very often: Zipf's law with theta 0.99, scattered over all keys.
    Zipfian,
    /// One after the other.
    Sequential,
    /// The newest most often.
    Latest,
}

/// How figures are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    Text,
    /// One JSON object.
    Json,
}

pub(super) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn size(text: &str) -> Result<u64, String> {
    crate::config::size(text).ok_or_else(|| "expected bytes, such as 100 or 4KB".to_owned())
}

/// As the other commands read it: a bare number counts seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let bare = text.bytes().all(|byte| byte.is_ascii_digit());
    let text = if bare { format!("{text}s") } else { text.to_owned() };
    crate::config::duration(&text)
        .ok_or_else(|| "expected a whole number with ms, s, m or h, such as 5s".to_owned())
}

/// Where the servers are.
#[derive(Debug, Clone)]
pub(super) struct Where {
    pub(super) grpc: Vec<Endpoint>,
    pub(super) http: Vec<Endpoint>,
}

/// Arguments that fit together.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) place: Where,
    /// Settings of the server to start; `None`: it runs already.
    pub(super) own_server: Option<Vec<String>>,
    pub(super) transport: Transport,
    pub(super) workload: Workload,
    pub(super) mix: Mix,
    pub(super) distribution: Distribution,
    pub(super) echo: bool,
    pub(super) keys: u64,
    /// Keys that have a text, new ones included.
    pub(super) keys_max: u64,
    pub(super) preload: bool,
    pub(super) key_bytes: usize,
    pub(super) value_bytes: usize,
    pub(super) range_max: u32,
    pub(super) if_version: bool,
    pub(super) connections: usize,
    pub(super) in_flight: usize,
    pub(super) rate: Option<f64>,
    pub(super) threads: usize,
    pub(super) duration: Duration,
    pub(super) rounds: u32,
    pub(super) warmup: Duration,
    pub(super) seed: u64,
}

impl Args {
    /// The plan; what is not allowed otherwise.
    pub(super) fn plan(&self) -> Result<Plan, Error> {
        within("--keys", self.keys, 1, 1_000_000_000_000)?;
        within("--key-size", self.key_size, KEY_PREFIX.len() + 1, KEY_BYTES_MAX)?;
        within("--value-size", self.value_size, 1, VALUE_BYTES_MAX)?;
        within("--range-max", self.range_max, 1, 10_000)?;
        within("--in-flight", self.in_flight, 1, IN_FLIGHT_MAX)?;
        within("--threads", self.threads, 1, THREADS_MAX)?;
        within("--rounds", self.rounds, 1, ROUNDS_MAX)?;
        within("--duration", self.duration, Duration::from_millis(1), Duration::from_hours(24))?;
        within("--warmup", self.warmup, Duration::ZERO, Duration::from_hours(24))?;
        if let Some(rate) = self.rate {
            within("--rate", rate, 0.001, RATE_MAX)?;
        }
        let keys_max = Messages::keys_max(self.key_size);
        if self.keys > keys_max {
            return Err(Error::Usage(format!(
                "--key-size {} has room for {keys_max} keys, --keys asks for {}",
                self.key_size, self.keys
            )));
        }
        let rest = self.transport == Transport::Rest;
        if rest && self.echo {
            let message = "--echo: there is no echo over REST; compare with --transport unary";
            return Err(Error::Usage(message.to_owned()));
        }
        let connections = if rest { self.in_flight } else { self.connections };
        within("--connections", connections, 1, CONNECTIONS_MAX)?;
        if connections > self.in_flight {
            return Err(Error::Usage(format!(
                "--connections {connections} are more than the operations of --in-flight {}, which are spread over them",
                self.in_flight
            )));
        }
        if self.threads > connections {
            return Err(Error::Usage(format!(
                "--threads {} are more than the {connections} connections that are spread over them",
                self.threads
            )));
        }
        Ok(Plan {
            place: Where { grpc: self.endpoint.clone(), http: self.http_endpoint.clone() },
            own_server: self.own_server.then(|| self.set.clone()),
            transport: self.transport,
            workload: self.workload,
            mix: Mix::of(self.workload),
            distribution: self.distribution.unwrap_or(Mix::distribution(self.workload)),
            echo: self.echo,
            keys: self.keys,
            keys_max,
            preload: !self.no_preload,
            key_bytes: self.key_size,
            value_bytes: usize::try_from(self.value_size).expect("at most 1 MiB"),
            range_max: self.range_max,
            if_version: self.if_version,
            connections,
            in_flight: self.in_flight,
            rate: self.rate,
            threads: self.threads,
            duration: self.duration,
            rounds: self.rounds,
            warmup: self.warmup,
            seed: self.seed.unwrap_or_else(rand::random),
        })
    }
}

fn within<T: Copy + PartialOrd + std::fmt::Debug>(
    name: &str,
    value: T,
    least: T,
    most: T,
) -> Result<(), Error> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(Error::Usage(format!("{name} is {value:?}; allowed is {least:?} to {most:?}")))
}

/// A directory for a server of our own.
pub(super) fn temporary_directory() -> PathBuf {
    let unique: u64 = rand::random();
    std::env::temp_dir().join(format!("kvstore-bench-{unique:016x}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn plan(words: &[&str]) -> Result<Plan, String> {
        let words = std::iter::once("bench").chain(words.iter().copied());
        let program = Program::try_parse_from(words).map_err(|error| error.to_string())?;
        program.args.plan().map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_one_connection_with_64_gets_in_flight() {
        let plan = plan(&[]).expect("legal");
        assert_eq!((plan.connections, plan.in_flight, plan.rate), (1, 64, None));
        assert_eq!((plan.key_bytes, plan.value_bytes, plan.rounds), (16, 100, 3));
        assert_eq!(plan.distribution, Distribution::Uniform);
        assert!(plan.preload && plan.own_server.is_none());
    }

    #[test]
    fn times_take_units_and_bare_seconds() {
        let of = |text| plan(&["--duration", text]).expect("legal").duration;
        assert_eq!((of("2"), of("2s")), (Duration::from_secs(2), Duration::from_secs(2)));
        assert_eq!(of("250ms"), Duration::from_millis(250));
    }

    #[test]
    fn a_workload_of_ycsb_brings_its_distribution_unless_told_otherwise() {
        let of = |words| plan(words).expect("legal").distribution;
        assert_eq!(of(&["--workload", "ycsb-a"]), Distribution::Zipfian);
        assert_eq!(of(&["--workload", "ycsb-d"]), Distribution::Latest);
        assert_eq!(
            of(&["--workload", "ycsb-d", "--distribution", "uniform"]),
            Distribution::Uniform
        );
    }

    #[test]
    fn rest_has_a_connection_for_each_operation_in_flight() {
        let plan = plan(&["--transport", "rest", "--in-flight", "7"]).expect("legal");
        assert_eq!(plan.connections, 7);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_is_allowed() {
        for (words, why) in [
            (&["--value-size", "0"][..], "--value-size is 0"),
            (&["--value-size", "2MB"], "allowed is 1 to 1048576"),
            (&["--value-size", "x"], "expected bytes"),
            (&["--key-size", "5"], "allowed is 6"),
            (&["--key-size", "7", "--keys", "101"], "room for 100 keys"),
            (&["--keys", "0"], "--keys"),
            (&["--connections", "65"], "--in-flight 64"),
            (&["--threads", "2"], "1 connections"),
            (&["--transport", "rest", "--echo"], "no echo over REST"),
            (&["--rate", "NaN"], "--rate"),
            (&["--rate", "0"], "--rate"),
            (&["--duration", "0s"], "--duration"),
            (&["--duration", ""], "expected a whole number"),
            (&["--rounds", "0"], "--rounds"),
            (&["--set", "a=b"], "--self"),
            (&["--self", "--server-pid", "1"], "cannot be used"),
            (&["--workload", "ycsb-g"], "ycsb-f"),
            (&["--endpoint", "nowhere"], "port is missing"),
        ] {
            let error = plan(words).expect_err("not allowed");
            assert!(error.contains(why), "{words:?}: {error}");
        }
    }
}
