//! What a move costs, in figures: bytes that are sent, how much slower calls are meanwhile, and whether all nodes get the same to do then.
//!
//! Three nodes are filled, two more join, one after the other. Calls come at a fixed rate all the time; how long one took counts from when it was due, so that
//! calls that could not be made are not left out. The data cannot be compressed, so bytes of values and bytes that are sent compare. What nodes send while nothing moves,
//! which is the calls' own entries and signs of life, is taken off.
//!
//! A debug build is asked for little: how long its calls take says nothing, and there are too few to judge by their number. A release build takes a minute and a half and says
//! it all:
//!
//! ```sh
//! cargo test --release --test cluster -- --nocapture bars
//! ```
//!
//! `KVSTORE_TEST_CLUSTER_MEBIBYTES` is how much is stored, `KVSTORE_TEST_CLUSTER_RATE` calls a second.

#![expect(clippy::cast_precision_loss, reason = "counts of a measurement, far below 2^53")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvstore::proto::v1::BatchPutRequest;
use kvstore::proto::v1::kv_service_client::KvServiceClient;
use kvstore::router::shard_of;
use linz::{Action, Outcome, Value};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tonic::transport::Channel;

use crate::client::Client;
use crate::cluster::{Cluster, Setup};
use crate::number;
use crate::operator::Seen;
use crate::story::TURN;
use crate::watch::Distribution;

/// How much is done, unless the environment says otherwise.
struct Scale {
    /// So many that five nodes can lead about the same number.
    shards: u32,
    mebibytes: u64,
    /// Calls a second.
    rate: u64,
    /// Calls that are measured while nothing moves.
    calls: usize,
}

const SCALE: Scale = if cfg!(debug_assertions) {
    Scale { shards: 20, mebibytes: 16, rate: 200, calls: 800 }
} else {
    Scale { shards: 64, mebibytes: 200, rate: 1_000, calls: 15_000 }
};

/// What a transfer may take of a machine that carries all five nodes: at the default, meant for nodes with a disk of their own, four transfers at a time fill disk and
/// processors here.
const MOVE_RATE: [(&str, &str); 1] = [("KVSTORE_CLUSTER_MOVERATE", "4MB")];

/// Bytes of a value that is stored before.
const VALUE_BYTES: usize = 4 << 10;

/// Values that are stored with one call.
const BATCH: usize = 256;

/// Callers; each makes its calls when they are due.
const CALLERS: usize = 32;

/// How long the calls that are measured may take.
const CALLS_WITHIN: Duration = Duration::from_mins(2);

/// Time between two looks whether enough were made.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long one try of a call may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// What may be sent: so many times what the replicas hold that have to move.
const SENT_MAX: f64 = 1.2;

/// The same when there is so little that what nodes say to each other weighs more.
const SENT_MAX_OF_LITTLE: f64 = 1.5;

/// How much longer the slowest hundredth of calls may take while replicas move.
const SLOWER_MAX: f64 = 3.0;

/// How far a node's part of the writes may be from an even one.
const UNEVEN_MAX: f64 = 0.15;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_join_under_load() {
    let _turn = TURN.lock().await;
    let mebibytes = number("KVSTORE_TEST_CLUSTER_MEBIBYTES").unwrap_or(SCALE.mebibytes);
    let rate = number("KVSTORE_TEST_CLUSTER_RATE").unwrap_or(SCALE.rate);
    let setup = Setup::of(3).shards(SCALE.shards).with(&MOVE_RATE);
    let mut cluster = Cluster::start(&setup).await;
    cluster.all_settle().await;
    let begun = Instant::now();
    fill(&cluster, mebibytes).await;
    println!("bars: {mebibytes} MiB stored in {:.1?}, {rate} calls a second", begun.elapsed());
    let load = Pace::start(&cluster, rate);
    let before = Sent::by(&cluster).await;
    let begun = Instant::now();
    load.goes_on(SCALE.calls).await;
    let sent = Sent::by(&cluster).await - before;
    let anyway = sent.messages / begun.elapsed().as_secs_f64();
    let quiet = load.take("three nodes, nothing moves").percentile(99);

    let (mut sent, mut least, mut slowest) = (Sent::default(), 0.0, Duration::ZERO);
    for _ in 0..2 {
        let (before, begun) = (Sent::by(&cluster).await, Instant::now());
        let node = cluster.join().await;
        cluster.all_settle().await;
        let mut moved = Sent::by(&cluster).await - before;
        moved.messages -= anyway * begun.elapsed().as_secs_f64();
        let had_to = bytes_that_had_to_move(&cluster, mebibytes).await;
        let name = cluster.nodes[node].name.clone();
        println!(
            "bars: {name} joined in {:.1?}: {:.1} MB of files and {:.1} MB of messages, at least {:.1} MB had to be",
            begun.elapsed(),
            moved.files / 1e6,
            moved.messages / 1e6,
            had_to / 1e6,
        );
        (sent, least) = (sent + moved, least + had_to);
        slowest = slowest.max(load.take(&format!("{name} joins")).percentile(99));
    }
    leaders_settle(&cluster).await;
    load.take("leaders move");
    let counted = load.shards();
    load.goes_on(SCALE.calls).await;
    load.take("five nodes, nothing moves");
    let parts = parts(&cluster, &counted, &load.shards()).await;
    load.stop().await;

    let times = (sent.files + sent.messages) / least;
    let slower = slowest.as_secs_f64() / quiet.as_secs_f64();
    let even = 1.0 / cluster.nodes.len() as f64;
    let uneven = parts.values().map(|part| (part / even - 1.0).abs()).fold(0.0, f64::max);
    println!("bars: sent {times:.3} times what had to be (at most {SENT_MAX})");
    println!("bars: p99 {slower:.2} times that of quiet times (at most {SLOWER_MAX})");
    println!("bars: writes at most {:.1} % from even (at most 15): {parts:.3?}", 100.0 * uneven);
    if cfg!(debug_assertions) {
        assert!(times <= SENT_MAX_OF_LITTLE);
    } else {
        assert!(times <= SENT_MAX && slower <= SLOWER_MAX && uneven <= UNEVEN_MAX);
    }
    assert!(sent.files > sent.messages, "what moves are files");
}

/// Stores values that cannot be compressed, with a caller at each node.
async fn fill(cluster: &Cluster, mebibytes: u64) {
    let values = usize::try_from(mebibytes << 20).expect("it is less than memory") / VALUE_BYTES;
    let nodes = cluster.nodes.len();
    let mut callers = JoinSet::new();
    for (number, node) in cluster.nodes.iter().enumerate() {
        let mut client = connect(node.grpc).await;
        callers.spawn(async move {
            let mut random = SmallRng::seed_from_u64(number as u64);
            let keys: Vec<usize> = (number..values).step_by(nodes).collect();
            for keys in keys.chunks(BATCH) {
                let entry = |key: &usize| (format!("fill/{key}"), text(&mut random));
                let entries = keys.iter().map(entry).collect();
                let put = BatchPutRequest { entries, ..BatchPutRequest::default() };
                client.batch_put(put).await.expect("it is stored");
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.expect("no caller panics");
    }
}

async fn connect(grpc: SocketAddr) -> KvServiceClient<Channel> {
    KvServiceClient::connect(format!("http://{grpc}")).await.expect("it listens")
}

/// A JSON string of random letters.
fn text(random: &mut SmallRng) -> String {
    let letters = random.sample_iter(rand::distr::Alphanumeric).take(VALUE_BYTES - 2);
    format!("\"{}\"", letters.map(char::from).collect::<String>())
}

/// Bytes that nodes have sent to each other.
#[derive(Debug, Default, Clone, Copy)]
struct Sent {
    files: f64,
    messages: f64,
}

impl Add for Sent {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { files: self.files + other.files, messages: self.messages + other.messages }
    }
}

impl Sub for Sent {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { files: self.files - other.files, messages: self.messages - other.messages }
    }
}

impl Sent {
    /// So far.
    async fn by(cluster: &Cluster) -> Self {
        let mut sum = Self::default();
        for node in &cluster.nodes {
            let url = format!("http://{}/actuator/prometheus", node.http);
            let text = reqwest::get(url).await.expect("it answers").text().await.expect("text");
            let count = |kind: &str| {
                let name = format!("kvstore_peer_sent_bytes_total{{kind=\"{kind}\"}} ");
                let count = text.lines().find_map(|line| line.strip_prefix(&name));
                count.and_then(|count| count.parse::<f64>().ok()).expect("it is counted")
            };
            sum = sum + Self { files: count("files"), messages: count("messages") };
        }
        sum
    }
}

/// What the newest node must have got, if no node is to hold more than the others: its share of all replicas.
async fn bytes_that_had_to_move(cluster: &Cluster, mebibytes: u64) -> f64 {
    let Seen { nodes, shards } = cluster.seen().await.expect("it answers");
    let replicas = shards.iter().map(|shard| shard.voters.len()).sum::<usize>();
    let share = (replicas / nodes.len()) as f64;
    share * (mebibytes << 20) as f64 / shards.len() as f64
}

/// Waits until every shard is led by the node that should.
async fn leaders_settle(cluster: &Cluster) {
    let names = cluster.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let is_led = |shard: &kvstore::proto::admin::Shard| shard.target.first() == Some(&shard.leader);
    cluster.settles_when(&names, |seen| seen.shards.iter().all(is_led)).await;
    assert_even(&cluster.seen().await.expect("it answers"));
}

/// All nodes lead the same number of shards, or one more.
fn assert_even(seen: &Seen) {
    let mut leads: BTreeMap<&str, usize> = BTreeMap::new();
    for shard in &seen.shards {
        *leads.entry(&shard.leader).or_default() += 1;
    }
    let even = seen.shards.len() / seen.nodes.len();
    let is_even = leads.len() == seen.nodes.len()
        && leads.values().all(|count| (even..=even + 1).contains(count));
    assert!(is_even, "{leads:?}");
}

/// Each node's part of the writes between two counts, by who leads their shards.
async fn parts(cluster: &Cluster, before: &[u64], after: &[u64]) -> BTreeMap<String, f64> {
    let seen = cluster.seen().await.expect("it answers");
    let written = |shard: usize| after[shard] - before[shard];
    let all: u64 = (0..after.len()).map(written).sum();
    let mut parts: BTreeMap<String, f64> = BTreeMap::new();
    for shard in &seen.shards {
        let part = written(shard.id as usize) as f64 / all as f64;
        *parts.entry(shard.leader.clone()).or_default() += part;
    }
    assert_eq!(parts.keys().collect::<BTreeSet<_>>(), seen.nodes.keys().collect());
    parts
}

/// Calls at a fixed rate.
struct Pace {
    seen: Arc<PaceSeen>,
    callers: JoinSet<()>,
}

/// What the callers saw.
#[derive(Default)]
struct PaceSeen {
    took: Mutex<Vec<Duration>>,
    /// Writes, by shard.
    shards: Mutex<Vec<u64>>,
    tries: Mutex<u64>,
    stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pace {
    fn start(cluster: &Cluster, rate: u64) -> Self {
        let seen = Arc::new(PaceSeen::default());
        *lock(&seen.shards) = vec![0; cluster.shards as usize];
        let begun = tokio::time::Instant::now();
        let mut callers = JoinSet::new();
        for number in 0..CALLERS {
            let client = Client::new(cluster.reached(), number);
            let every = Duration::from_secs(1) * u32::try_from(CALLERS).expect("few")
                / u32::try_from(rate).expect("a rate");
            let first = begun + every.mul_f64(number as f64 / CALLERS as f64);
            callers.spawn(call(client, number, first, every, Arc::clone(&seen)));
        }
        Self { seen, callers }
    }

    /// Returns once so many calls were made that nobody has taken.
    async fn goes_on(&self, calls: usize) {
        let deadline = Instant::now() + CALLS_WITHIN;
        while lock(&self.seen.took).len() < calls {
            assert!(Instant::now() < deadline, "not {calls} calls within {CALLS_WITHIN:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How long the calls since the last time took.
    fn take(&self, what: &str) -> Distribution {
        let took = Distribution::of(std::mem::take(&mut lock(&self.seen.took)));
        let tries = std::mem::take(&mut *lock(&self.seen.tries));
        let millis = |percent| took.percentile(percent).as_secs_f64() * 1e3;
        let (p50, p99, max) = (millis(50), millis(99), millis(100));
        println!("bars: {what}: p50 {p50:.2} p99 {p99:.2} max {max:.0} ms, {tries} repeats");
        took
    }

    fn shards(&self) -> Vec<u64> {
        lock(&self.seen.shards).clone()
    }

    async fn stop(mut self) {
        self.seen.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.callers.join_next().await {
            ended.expect("no caller panics");
        }
    }
}

/// One caller: every other call reads, a call that ends without an answer is repeated at the next node.
async fn call(
    mut client: Client,
    number: usize,
    first: tokio::time::Instant,
    every: Duration,
    seen: Arc<PaceSeen>,
) {
    let mut random = SmallRng::seed_from_u64(number as u64);
    let mut due = first;
    for count in 0_u64.. {
        sleep_until(due).await;
        if seen.stop.load(Ordering::SeqCst) {
            return;
        }
        let key = format!("load/{}", random.random_range(0..100_000));
        let reads = count % 2 == 0;
        let action = if reads { Action::Get } else { Action::put(Value(count)) };
        let id = format!("{number}-{count}");
        loop {
            if client.connect().await
                && let (Outcome::Ok(_), _) = client.call(&key, action, Some(&id), DEADLINE).await
            {
                break;
            }
            *lock(&seen.tries) += 1;
        }
        lock(&seen.took).push(due.elapsed());
        if !reads {
            let mut shards = lock(&seen.shards);
            let shard_count = u32::try_from(shards.len()).expect("few");
            shards[shard_of(key.as_bytes(), shard_count).0 as usize] += 1;
        }
        due += every;
    }
}
