//! Clients at work: each records what it did and saw.
//!
//! Half of the clients call once and take the outcome as it is. The other half do as real clients: writes carry a request id, and what
//! did not end with an answer is repeated, at another node, until the operation's deadline; such an operation is one in the history, so
//! that a repeat that is applied twice shows.
//!
//! Beside the keys that all share, each client writes keys that it never writes again.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use linz::{Action, Answer, History, Outcome, Value, Version};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Client, DEADLINE, why};
use crate::cluster::Reach;
use crate::watch::Gaps;
use crate::{PATIENCE, Void};

/// Clients that call once.
const PLAIN: u32 = 4;

/// Clients that repeat.
const REPEATING: u32 = 4;

/// Keys that all clients share.
const KEYS: usize = 10;

/// One operation in so many is a write of a fresh key.
const FRESH_ONE_IN: u32 = 10;

/// Operations that a run may have in all; it ends when they are used up.
const OPERATIONS_MAX: usize = 1_000_000;

/// How long a client waits between two operations, at most.
const THINKS_MAX: Duration = Duration::from_millis(8);

/// How long a client repeats an operation.
const REPEATS_FOR: Duration = Duration::from_secs(15);

/// What a client waits before it repeats.
const REPEATS_AFTER: Duration = Duration::from_millis(20);

/// Writes of a key that is written once.
pub(crate) type Fresh = BTreeMap<String, (Value, Outcome)>;

/// The clients' common ground.
pub(crate) struct Shared {
    pub(crate) history: History,
    pub(crate) fresh: Mutex<Fresh>,
    pub(crate) gaps: Gaps,
    /// Operations that were answered.
    answered: AtomicU64,
    /// Operations of repeating clients that did not end with an answer: the first few.
    failures: Mutex<Vec<String>>,
    /// How often calls of all clients ended without an answer, by reason.
    endings: Mutex<BTreeMap<String, u64>>,
    values: AtomicU64,
    stop: AtomicBool,
    start: Instant,
    seed: u64,
}

/// Failures that are kept for the report.
const FAILURES_KEPT: usize = 10;

/// Clients at work.
pub(crate) struct Load {
    pub(crate) shared: Arc<Shared>,
    clients: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(nodes: &watch::Receiver<Vec<Reach>>, shards: u32, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            history: History::new(OPERATIONS_MAX),
            fresh: Mutex::default(),
            gaps: Gaps::new(shards),
            answered: AtomicU64::new(0),
            failures: Mutex::default(),
            endings: Mutex::default(),
            values: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            start: Instant::now(),
            seed,
        });
        let mut clients = JoinSet::new();
        for name in 0..PLAIN + REPEATING {
            let worker = Worker {
                name,
                repeats: name >= PLAIN,
                client: Client::new(nodes.clone(), name as usize),
                random: SmallRng::seed_from_u64(seed.wrapping_add(u64::from(name) << 32)),
                versions: HashMap::new(),
                shared: Arc::clone(&shared),
            };
            clients.spawn(worker.work());
        }
        Self { shared, clients }
    }

    /// Waits until so many more operations were answered.
    pub(crate) async fn goes_on(&mut self, operations: u64) -> Result<(), Void> {
        let wanted = self.shared.answered.load(Ordering::SeqCst) + operations;
        let deadline = Instant::now() + PATIENCE;
        while self.shared.answered.load(Ordering::SeqCst) < wanted {
            if let Some(ended) = self.clients.try_join_next() {
                ended.expect("no client panics");
                return Err(Void("a client ended before the run did".to_owned()));
            }
            if Instant::now() > deadline {
                let missing = wanted - self.shared.answered.load(Ordering::SeqCst);
                let what = format!("of {operations} operations {missing} are not answered");
                return Err(Void(format!("{what} after {PATIENCE:?}")));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Ends the clients' work.
    pub(crate) async fn stop(mut self) -> Arc<Shared> {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("no client panics");
        }
        self.shared
    }
}

impl Shared {
    /// Milliseconds since the run began.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// How operations of repeating clients failed.
    pub(crate) fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }

    /// How often calls ended without an answer, and why.
    pub(crate) fn endings(&self) -> BTreeMap<String, u64> {
        lock(&self.endings).clone()
    }

    pub(crate) fn fresh(&self) -> Fresh {
        lock(&self.fresh).clone()
    }
}

/// What a panic interrupted is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Worker {
    name: u32,
    repeats: bool,
    client: Client,
    random: SmallRng,
    /// The versions this client saw last.
    versions: HashMap<String, Version>,
    shared: Arc<Shared>,
}

impl Worker {
    async fn work(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            if !self.client.connect().await {
                tokio::time::sleep(REPEATS_AFTER).await;
                continue;
            }
            let worked = if self.random.random_ratio(1, FRESH_ONE_IN) {
                self.write_fresh().await
            } else {
                self.operate().await
            };
            if !worked {
                return;
            }
            tokio::time::sleep(THINKS_MAX.mul_f64(self.random.random())).await;
        }
    }

    /// One operation on a key that all share. False: the history is full.
    async fn operate(&mut self) -> bool {
        let key = format!("k{}", self.random.random_range(0..KEYS));
        let action = self.choose(&key);
        let shared = Arc::clone(&self.shared);
        let Some(call) = shared.history.call(self.name, &key, action, shared.now()) else {
            return false;
        };
        let outcome = self.perform(&key, action).await;
        shared.history.returns(call, outcome, shared.now());
        match outcome {
            Outcome::Ok(Answer::Found(_, version) | Answer::Stored(version)) => {
                self.versions.insert(key, version);
            }
            Outcome::Ok(Answer::Missing | Answer::Deleted(_)) => {
                self.versions.insert(key, Version(0));
            }
            _ => {}
        }
        true
    }

    fn choose(&mut self, key: &str) -> Action {
        let value = Value(self.shared.values.fetch_add(1, Ordering::Relaxed));
        let if_version = Some(self.versions.get(key).copied().unwrap_or(Version(0)));
        match self.random.random_range(0..20) {
            0..=8 => Action::Get,
            9..=14 => Action::put(value),
            15..=17 => Action::Put { value, if_version },
            18 => Action::delete(),
            _ => Action::Delete { if_version },
        }
    }

    async fn write_fresh(&mut self) -> bool {
        let value = Value(self.shared.values.fetch_add(1, Ordering::Relaxed));
        let key = format!("fresh/{}/{}", self.name, value.0);
        let outcome = self.perform(&key, Action::put(value)).await;
        let mut fresh = lock(&self.shared.fresh);
        fresh.insert(key, (value, outcome));
        fresh.len() < OPERATIONS_MAX
    }

    /// One operation to its end, with repeats if this client is one that repeats.
    async fn perform(&mut self, key: &str, action: Action) -> Outcome {
        let number = self.shared.values.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{}-{number}", self.shared.seed, self.name);
        let id = (self.repeats && action != Action::Get).then_some(id.as_str());
        let give_up = Instant::now() + REPEATS_FOR;
        let mut may_be_applied = false;
        loop {
            let (outcome, status) = self.client.call(key, action, id, DEADLINE).await;
            if matches!(outcome, Outcome::Ok(_)) {
                self.shared.answered.fetch_add(1, Ordering::SeqCst);
                if !matches!(action, Action::Get) {
                    self.shared.gaps.written(key);
                }
                return outcome;
            }
            if let Some(status) = &status {
                let mut endings = lock(&self.shared.endings);
                *endings.entry(format!("{outcome}: {}", why(status))).or_default() += 1;
            }
            may_be_applied |= outcome == Outcome::Unknown;
            if !self.repeats || Instant::now() > give_up {
                if self.repeats {
                    self.report(&format!("{action} of {key}: {status:?}"));
                }
                return if may_be_applied { Outcome::Unknown } else { Outcome::Failed };
            }
            tokio::time::sleep(REPEATS_AFTER).await;
            while !self.client.connect().await && Instant::now() < give_up {
                tokio::time::sleep(REPEATS_AFTER).await;
            }
        }
    }

    fn report(&self, failure: &str) {
        let mut failures = lock(&self.shared.failures);
        if failures.len() < FAILURES_KEPT {
            failures.push(format!("client {}: {failure}", self.name));
        }
    }
}
