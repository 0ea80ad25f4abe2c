//! What is measured: rows of callers with one call at a time each, for a fixed time after a warm-up.

use std::ops::Range;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tonic::Status;

use crate::Outcome;
use crate::client::{Choice, Connections};
use crate::cluster::Cluster;
use crate::keys::{Random, is_value, key, value};
use crate::options::Options;
use crate::process::Usage;

/// Latencies are told apart from here, in microseconds.
const LATENCY_MIN: u64 = 1;

/// Longer ones count as this long.
const LATENCY_MAX: u64 = 60_000_000;

/// Digits that a latency is exact to.
const DIGITS: u8 = 3;

/// How long the last calls of a row may take after its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A caller gives up after so many failures.
const FAILURES_MAX: u64 = 100;

/// Callers that store the keys before the rows.
const PRELOAD_CALLERS: u64 = 256;

/// To which nodes the calls of a row go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// To all alike.
    All,
    /// To one.
    One,
    /// To the leader of the key: of etcd one node, of kvstore by the ring, as the clients do that come with it.
    Leader,
}

/// One line of the report.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    /// How many of a hundred calls read.
    reads_percent: u64,
    /// One caller, or as many as the options say.
    one_caller: bool,
    spread: Spread,
    /// How many times etcd's rate it has to be.
    pub bar: Option<f64>,
}

const fn row(name: &'static str, reads_percent: u64) -> Row {
    Row { name, reads_percent, one_caller: false, spread: Spread::All, bar: None }
}

/// All rows, in the order in which they are measured.
pub const ROWS: [Row; 9] = [
    Row { bar: Some(3.0), ..row("put", 0) },
    Row { bar: Some(2.0), ..row("get", 100) },
    row("mixed", 50),
    Row { spread: Spread::Leader, ..row("put-at-leader", 0) },
    Row { spread: Spread::Leader, ..row("get-at-leader", 100) },
    Row { spread: Spread::One, ..row("put-one-node", 0) },
    Row { spread: Spread::One, ..row("get-one-node", 100) },
    Row { one_caller: true, ..row("put-one-caller", 0) },
    Row { one_caller: true, ..row("get-one-caller", 100) },
];

/// What a row came to.
#[derive(Debug, Clone)]
pub struct Figures {
    pub latencies: Histogram<u64>,
    pub time: Duration,
    /// Of all processes of the cluster.
    pub servers: Usage,
    pub client: Usage,
    pub failures: Failures,
}

/// Calls that failed, or read something else than what was written, also those of the warm-up.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    pub count: u64,
    pub example: Option<String>,
}

impl Failures {
    fn note(&mut self, what: String) {
        self.count += 1;
        self.example.get_or_insert(what);
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.example = self.example.take().or(other.example);
    }
}

/// What a caller does.
struct Caller {
    connections: Choice,
    random: Random,
    keys: u64,
    reads_percent: u64,
    /// Calls that return in this time are counted; at its end the caller stops.
    counted: Range<Instant>,
}

impl Caller {
    async fn run(mut self) -> (Histogram<u64>, Failures) {
        let (mut latencies, mut failures) = (histogram(), Failures::default());
        let mut sent = Instant::now();
        while sent < self.counted.end && failures.count < FAILURES_MAX {
            let outcome = self.call().await;
            let returned = Instant::now();
            match outcome {
                Err(failure) => failures.note(failure),
                Ok(()) if self.counted.contains(&returned) => {
                    latencies.saturating_record(micros(returned - sent));
                }
                Ok(()) => {}
            }
            sent = returned;
        }
        (latencies, failures)
    }

    async fn call(&mut self) -> Result<(), String> {
        let index = self.random.below(self.keys);
        let name = key(index);
        let client = self.connections.next(&name);
        if self.random.below(100) >= self.reads_percent {
            let value = value(index, &mut self.random);
            return client.put(name, value).await.map_err(|status| status.to_string());
        }
        match client.get(name).await {
            Ok(Some(value)) if is_value(index, &value) => Ok(()),
            Ok(Some(value)) => Err(format!("{} read {value:?}", key(index))),
            Ok(None) => Err(format!("{} is not there", key(index))),
            Err(status) => Err(status.to_string()),
        }
    }
}

/// Measures one row.
pub async fn measure(
    row: Row,
    cluster: &mut Cluster,
    connections: &mut Connections,
    options: &Options,
    seed: u64,
) -> Outcome<Figures> {
    connections.learn(cluster).await?;
    let from = Instant::now() + options.warm_up;
    let counted = from..from + options.time;
    let mut seeds = Random::new(seed);
    let mut callers = JoinSet::new();
    for number in 0..if row.one_caller { 1 } else { options.clients } {
        let caller = Caller {
            connections: connections.of_caller(number, row.spread),
            random: Random::new(seeds.next()),
            keys: options.keys,
            reads_percent: row.reads_percent,
            counted: counted.clone(),
        };
        callers.spawn(caller.run());
    }
    tokio::time::sleep_until(counted.start.into()).await;
    let (started, servers, client) = (Instant::now(), cluster.usage()?, Usage::own()?);
    tokio::time::sleep_until(counted.end.into()).await;
    let used = (cluster.usage()? - servers, Usage::own()? - client);
    let mut figures = Figures {
        latencies: histogram(),
        time: started.elapsed(),
        servers: used.0,
        client: used.1,
        failures: Failures::default(),
    };
    let joined = async {
        while let Some(caller) = callers.join_next().await {
            let (latencies, failures) = caller?;
            figures.latencies.add(latencies)?;
            figures.failures.merge(failures);
        }
        Outcome::Ok(())
    };
    tokio::time::timeout(PATIENCE, joined)
        .await
        .map_err(|_| format!("{}: a call has no answer after {PATIENCE:?}", row.name))??;
    cluster.check()?;
    Ok(figures)
}

/// Stores all keys.
pub async fn preload(connections: &Connections, keys: u64, seed: u64) -> Outcome<()> {
    let mut callers = JoinSet::new();
    for first in 0..PRELOAD_CALLERS {
        let mut connections = connections.of_caller(usize::try_from(first)?, Spread::All);
        let mut random = Random::new(seed.wrapping_add(first));
        callers.spawn(async move {
            let mut index = first;
            while index < keys {
                let name = key(index);
                connections.next(&name).put(name.clone(), value(index, &mut random)).await?;
                index += PRELOAD_CALLERS;
            }
            Ok::<_, Status>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller?.map_err(|status| format!("while the keys are stored: {status}"))?;
    }
    Ok(())
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_MIN, LATENCY_MAX, DIGITS).expect("the bounds are legal")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
