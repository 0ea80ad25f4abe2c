//! One run: a seed makes a cluster, its load and what goes wrong; three phases; a verdict.
//!
//! 1. **Safety**: clients and faults.
//! 2. **Liveness**: all faults end. Every shared key takes a write and answers a read within [`LIVELY_WITHIN`], and the replicas become equal.
//! 3. **Scan**: what was acknowledged is there, the history is linearizable.

use std::cell::Cell;
use std::sync::{Arc, Once};
use std::time::Duration;

use linz::{Action, Answer, Outcome as Seen, STATES_MAX, Verdict, check};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, sleep, timeout};

use super::access;
use super::clients::{Clients, KEYS, Load, shared_key};
use super::cluster::{Cluster, Shape};
use super::invariants::Invariants;
use super::nemesis::{Appetite, Deeds, Nemesis};
use super::network::Traffic;
use super::record::{Counts, Record};
use crate::command::Outcome;
use crate::raft::node::LogLimits;
use crate::raft::types::{GroupId, seeded};
use crate::storage::StorageEngine;
use crate::types::Version;

/// How long after the last fault everything must work again.
const LIVELY_WITHIN: Duration = Duration::from_secs(20);

/// How long after that every replica must be where the cluster wants it.
const ARRIVED_WITHIN: Duration = Duration::from_mins(1);

/// How often invariants are looked at, and how often states are.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
const LOOKS_PER_STATE: u32 = 50;

/// A key with this ttl must be gone so long after its time when nothing goes wrong.
const TTL_SECONDS: u32 = 2;
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// What a run is made of.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) shape: Shape,
    pub(super) load: Load,
    pub(super) appetite: Appetite,
    pub(super) duration: Duration,
}

impl Plan {
    /// What the seed says.
    pub(super) fn random(random: &mut StdRng) -> Self {
        let election_ms = random.random_range(200..500);
        let shape = Shape {
            founders: if random.random_ratio(1, 6) { 5 } else { 3 },
            spares: 0,
            replication_factor: 5,
            groups: random.random_range(1..=3),
            election_timeout: Duration::from_millis(election_ms),
            heartbeat_interval: Duration::from_millis(election_ms / random.random_range(4..8)),
            log_keep: random.random_range(0..20),
            limits: LogLimits {
                snapshot_bytes: 1 << random.random_range(9..14),
                log_bytes: 1 << random.random_range(13..17),
            },
            segment_bytes: 1 << random.random_range(11..15),
            cache_bytes: 1 << random.random_range(8..16),
            large_memtables: random.random(),
            follower_reads: true,
        };
        let load = Load {
            plain: random.random_range(2..5),
            repeating: random.random_range(1..4),
            batch: random.random(),
            expiry: random.random_ratio(1, 2),
            thinks_ms_max: random.random_range(10..60),
        };
        let appetite = Appetite {
            disks: random.random_ratio(5, 6),
            network: random.random_ratio(5, 6),
            members: false,
            clock_ms: [0, 60_000, 3_600_000][random.random_range(0..3)],
        };
        let duration = Duration::from_millis(random.random_range(4_000..9_000));
        Self { shape, load, appetite, duration }
    }

    /// The same with members that come and go.
    fn with_members(mut self, random: &mut StdRng) -> Self {
        self.appetite.members = true;
        self.shape.founders = random.random_range(1..=4);
        self.shape.spares = random.random_range(1..=4);
        self.shape.replication_factor = random.random_range(1..=3);
        self.duration += Duration::from_secs(8);
        self
    }
}

/// What came of a run.
#[derive(Debug)]
#[expect(dead_code, reason = "it is printed")]
pub(super) struct Report {
    pub(super) violation: Option<String>,
    pub(super) leaders: u64,
    pub(super) deeds: Deeds,
    pub(super) traffic: Traffic,
    pub(super) counts: Counts,
    /// Replicas that had moved away and were erased.
    pub(super) erased: u64,
    /// Of everything that clients, replicas and states went through, and of every message: the same for all runs of a seed.
    pub(super) trace: (u64, u64),
    /// Virtual time, in milliseconds.
    pub(super) took_ms: u64,
}

/// Runs what `seed` says.
pub(super) fn run_seed(seed: u64) -> Report {
    let mut random = StdRng::seed_from_u64(seed);
    let plan = Plan::random(&mut random);
    let run_seed = random.random();
    let moves = random.random_ratio(1, 2);
    let plan = if moves { plan.with_members(&mut random) } else { plan };
    run(&plan, run_seed)
}

/// Runs `plan`.
pub(super) fn run(plan: &Plan, seed: u64) -> Report {
    simulate(seed, async || Run::start(plan, seed).await.finish(plan, seed).await)
}

/// Prints what is logged, with virtual times, when `KVSTORE_SIM_LOG` says what (as in `openraft=debug`).
fn log_if_asked(start: Instant) {
    use tracing_subscriber::fmt::format::Writer;
    use tracing_subscriber::fmt::time::FormatTime;

    struct Virtual(Instant);
    impl FormatTime for Virtual {
        fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
            write!(writer, "{:>6} ms", self.0.elapsed().as_millis())
        }
    }
    if let Ok(filter) = std::env::var("KVSTORE_SIM_LOG") {
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
        // A second run of one process has the first one's.
        let _ = subscriber.with_timer(Virtual(start)).try_init();
    }
}

/// Runs `work` on a virtual clock.
pub(crate) fn simulate<T>(seed: u64, work: impl AsyncFnOnce() -> T) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    seeded(seed, || {
        runtime.block_on(async {
            log_if_asked(Instant::now());
            work().await
        })
    })
}

struct Run {
    cluster: Arc<Cluster>,
    record: Arc<Record>,
    invariants: Invariants,
    looks: u32,
    /// Of this thread, before the run.
    panics: u64,
}

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Panics on this thread so far: one of a task would pass unseen.
fn panics() -> u64 {
    static COUNT: Once = Once::new();
    COUNT.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            print(panic);
        }));
    });
    PANICS.get()
}

impl Run {
    async fn start(plan: &Plan, seed: u64) -> Self {
        let cluster = Cluster::new(plan.shape.clone(), seed);
        cluster.start_all().await.expect("empty disks that work");
        let record = Arc::new(Record::new());
        let invariants = Invariants::new(&cluster, &record);
        Self { cluster, record, invariants, looks: 0, panics: panics() }
    }

    async fn finish(mut self, plan: &Plan, seed: u64) -> Report {
        let deeds = self.safety(plan, seed).await;
        if self.record.violation().is_none() {
            self.liveness().await;
        }
        if self.record.violation().is_none() {
            self.scan().await;
        }
        let took_ms = self.cluster.now_ms();
        self.cluster.end().await;
        let mut violation = self.record.violation();
        if violation.is_none() && self.panics < panics() {
            violation = Some("a task panicked: see above".to_owned());
        }
        if violation.is_none() {
            violation = match check(&self.record.history, STATES_MAX) {
                Verdict::Linearizable => None,
                verdict => Some(format!("{verdict:?}")),
            };
        }
        Report {
            violation,
            leaders: self.invariants.leaders(),
            deeds,
            traffic: self.cluster.network.traffic(),
            counts: self.record.counts(),
            erased: self.invariants.erased(),
            trace: (self.record.trace_hash(), self.cluster.network.trace_hash()),
            took_ms,
        }
    }

    fn look(&mut self) {
        self.invariants.look();
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_PER_STATE) {
            self.invariants.look_at_states();
        }
    }

    /// Waits for `work`, looking all the time.
    async fn watch<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            if let Ok(done) = timeout(LOOK_INTERVAL, &mut work).await {
                self.look();
                return done;
            }
            self.look();
        }
    }

    async fn safety(&mut self, plan: &Plan, seed: u64) -> Deeds {
        let clients = Clients::start(&self.cluster, &self.record, &plan.load, seed);
        let nemesis = Nemesis::new(&self.cluster, &self.record, &plan.appetite, seed);
        self.watch(async {
            let deeds = nemesis.work(plan.duration).await;
            clients.stop().await;
            deeds
        })
        .await
    }

    async fn liveness(&mut self) {
        let (cluster, record) = (Arc::clone(&self.cluster), Arc::clone(&self.record));
        let deadline = Instant::now() + ARRIVED_WITHIN;
        while let Err(how) = cluster.arrived() {
            if Instant::now() > deadline {
                return self
                    .record
                    .violate(format!("replicas do not come to where they are to be: {how}"));
            }
            self.watch(sleep(LOOK_INTERVAL)).await;
        }
        let work = async {
            write_and_read_all(&cluster, &record).await;
            expire_in_all(&cluster, &record).await;
        };
        let all = self.watch(timeout(LIVELY_WITHIN, work)).await;
        if all.is_err() {
            let what = format!("a key was not written and read {LIVELY_WITHIN:?} after all faults");
            return self.record.violate(what);
        }
        let deadline = Instant::now() + LIVELY_WITHIN;
        while let Err(how) = self.invariants.settled() {
            if Instant::now() > deadline {
                return self.record.violate(format!("replicas do not become equal: {how}"));
            }
            self.watch(sleep(LOOK_INTERVAL)).await;
        }
        self.invariants.look_at_states();
    }

    async fn scan(&mut self) {
        let (cluster, record) = (Arc::clone(&self.cluster), Arc::clone(&self.record));
        for (path, (value, version)) in record.promised() {
            let (group, key) = path.split_once('/').expect("a group and a key");
            let group = GroupId(group.parse().expect("a number"));
            for node in cluster.holders(group) {
                let read =
                    cluster.get(node, group, LIVELY_WITHIN, |engine| access::read(engine, key));
                let found = self.watch(read).await;
                if found.as_ref().ok() != Some(&Some((value, version))) {
                    let what = format!(
                        "{key} was stored as {value}, {version}; node {node} reads {found:?}"
                    );
                    return record.violate(what);
                }
            }
        }
    }
}

/// Every shared key takes a write and answers a read, at every node.
async fn write_and_read_all(cluster: &Cluster, record: &Record) {
    for number in 0..KEYS {
        let (key, group) = (shared_key(number), cluster.group_of(number));
        let value = record.propose(&[&key]);
        let action = Action::put(linz::Value(value));
        let call = record.history.call(1_000, &key, action, cluster.now_ms());
        let call = call.expect("there is room");
        let change = access::put(&key, value, 0, None);
        let version = loop {
            let id = format!("last-{number}");
            match cluster.settle(group, &change, &id, LIVELY_WITHIN).await {
                Ok(Outcome::Put { version }) => break version,
                _ => sleep(LOOK_INTERVAL).await,
            }
        };
        let stored = Seen::Ok(Answer::Stored(linz::Version(version.0)));
        record.history.returns(call, stored, cluster.now_ms());
        for node in cluster.holders(group) {
            read_once(cluster, record, node, &key, group).await;
        }
    }
}

/// In every group a key with a ttl goes when its time has come, although clocks were turned.
async fn expire_in_all(cluster: &Cluster, record: &Record) {
    for group in cluster.groups() {
        let key = format!("last-ttl-{}", group.0);
        let change = access::put_for(&key, record.propose(&[&key]), TTL_SECONDS);
        let called = Instant::now();
        let stored = loop {
            match cluster.settle(group, &change, &key, LIVELY_WITHIN).await {
                Ok(Outcome::Put { .. }) => break Instant::now(),
                _ => sleep(LOOK_INTERVAL).await,
            }
        };
        let ttl = Duration::from_secs(TTL_SECONDS.into());
        loop {
            access::tick(cluster, group).await;
            let node = cluster.leader(group).unwrap_or(0);
            let look = |engine: &dyn StorageEngine| access::read(engine, &key);
            match cluster.get(node, group, LIVELY_WITHIN, look).await {
                Ok(None) if called.elapsed() < ttl / 2 => {
                    let what = format!("{key} lived for {:?} of {ttl:?}", called.elapsed());
                    return record.violate(what);
                }
                Ok(None) => break,
                _ if stored.elapsed() > ttl + GONE_WITHIN => {
                    let what = format!("{key} is there {:?} after, for {ttl:?}", stored.elapsed());
                    return record.violate(what);
                }
                _ => sleep(LOOK_INTERVAL * 20).await,
            }
        }
        record.trace((key, called.elapsed().as_millis()));
    }
}

async fn read_once(cluster: &Cluster, record: &Record, node: usize, key: &str, group: GroupId) {
    let found: Option<(u64, Version)> = loop {
        let call = record.history.call(1_000, key, Action::Get, cluster.now_ms());
        let call = call.expect("there is room");
        let limit = Duration::from_secs(2);
        let found = cluster.get(node, group, limit, |engine| access::read(engine, key)).await;
        let outcome = match &found {
            Ok(Some((value, version))) => {
                Seen::Ok(Answer::Found(linz::Value(*value), linz::Version(version.0)))
            }
            Ok(None) => Seen::Ok(Answer::Missing),
            Err(_) => Seen::Failed,
        };
        record.history.returns(call, outcome, cluster.now_ms());
        match found {
            Ok(found) => break found,
            Err(_) => sleep(LOOK_INTERVAL).await,
        }
    };
    record.trace((node, key, found));
}
