//! Clients at work, each a task: they ask any node, know what they may rely on, and record what they saw.
//!
//! | kind | does | judged by |
//! |---|---|---|
//! | plain | gets, puts and deletes of shared keys, some on a condition; takes the outcome as it is | the history is linearizable |
//! | repeating | the same with request ids; repeats elsewhere what did not end with an answer, now and then also what did | the history, of one operation each; a repeat of what was answered is answered alike |
//! | batch | stores the next number under three keys of one group, with a request id until it is answered; others read all three | all three are equal, not before what was acknowledged, not after what was asked for, never going back |
//! | fresh | stores keys that nobody else writes | they are there at the end |
//! | expiry | stores keys that expire | they are gone when their time has come by the group's clock, and there before; by the clock of the simulation no key lives for less than its ttl but for a hundredth |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use linz::{Action, Answer, Outcome as Seen};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::access::{self, FILLING_BYTES_MAX};
use super::cluster::Cluster;
use super::network::NodeIndex;
use super::record::Record;
use crate::command::{Change, Outcome};
use crate::error::{Error, Kind, Result};
use crate::raft::types::GroupId;
use crate::storage::StorageEngine;
use crate::types::Version;

/// Keys that all share.
pub(super) const KEYS: usize = 5;

/// How long a client repeats.
const REPEATS_FOR: Duration = Duration::from_secs(4);

/// Keys of a batch.
const BATCH: usize = 3;

pub(super) fn shared_key(number: usize) -> String {
    format!("k{number}")
}

/// How many clients of each kind, and how they work.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) plain: u32,
    pub(super) repeating: u32,
    pub(super) batch: bool,
    pub(super) expiry: bool,
    /// Most milliseconds between two operations of a client.
    pub(super) thinks_ms_max: u64,
}

struct Client {
    name: u32,
    cluster: Arc<Cluster>,
    record: Arc<Record>,
    load: Load,
    random: StdRng,
    stop: Arc<AtomicBool>,
    /// The last version seen of each shared key.
    versions: BTreeMap<String, Version>,
    operations: u64,
}

/// When a key with a ttl was stored.
struct Life {
    /// In milliseconds.
    ttl: u64,
    called: Instant,
    /// The group's clock before it was called, and after it had been answered.
    before: u64,
    after: u64,
}

/// Clients at work.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(super) fn start(
        cluster: &Arc<Cluster>,
        record: &Arc<Record>,
        load: &Load,
        seed: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |name: u32| Client {
            name,
            cluster: Arc::clone(cluster),
            record: Arc::clone(record),
            load: load.clone(),
            random: StdRng::seed_from_u64(seed ^ (u64::from(name) << 32)),
            stop: Arc::clone(&stop),
            versions: BTreeMap::new(),
            operations: 0,
        };
        let mut tasks = Vec::new();
        for name in 0..load.plain {
            tasks.push(tokio::spawn(client(name).work(false)));
        }
        for name in load.plain..load.plain + load.repeating {
            tasks.push(tokio::spawn(client(name).work(true)));
        }
        if load.batch {
            tasks.push(tokio::spawn(client(100).store_batches()));
        }
        if load.expiry {
            tasks.push(tokio::spawn(client(200).store_expiring()));
        }
        Self { stop, tasks }
    }

    /// Ends the work; waits for what is under way.
    pub(super) async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.expect("no client panics");
        }
    }
}

/// How an operation ended, as the history has it.
fn seen(ended: &Result<Outcome>) -> Seen {
    match ended {
        Ok(Outcome::Put { version }) => Seen::Ok(Answer::Stored(linz::Version(version.0))),
        Ok(Outcome::Delete { deleted }) => Seen::Ok(Answer::Deleted(*deleted)),
        Ok(Outcome::Mismatch { .. }) => Seen::Ok(Answer::Mismatch),
        Ok(_) => Seen::Unknown,
        Err(error) if error.reason().kind() == Kind::Unknown => Seen::Unknown,
        Err(_) => Seen::Failed,
    }
}

impl Client {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst) && self.record.violation().is_none()
    }

    async fn think(&mut self) {
        let most = self.load.thinks_ms_max;
        sleep(Duration::from_millis(self.random.random_range(1..=most))).await;
    }

    fn some_node(&mut self) -> NodeIndex {
        let present = self.cluster.present();
        present[self.random.random_range(0..present.len())]
    }

    fn limit(&mut self) -> Duration {
        let most = if self.random.random_ratio(1, 4) { 100 } else { 3_000 };
        Duration::from_millis(self.random.random_range(20..most))
    }

    fn filling(&mut self) -> usize {
        self.random.random_range(0..FILLING_BYTES_MAX)
    }

    fn request_id(&mut self) -> String {
        self.operations += 1;
        format!("{}-{}", self.name, self.operations)
    }

    async fn work(mut self, repeats: bool) {
        while self.goes_on() {
            match self.random.random_range(0..20) {
                0 => self.store_fresh(repeats).await,
                1..8 => self.get().await,
                _ => self.change(repeats).await,
            }
            self.think().await;
        }
    }

    fn some_key(&mut self) -> (String, GroupId) {
        let number = self.random.random_range(0..KEYS);
        (shared_key(number), self.cluster.group_of(number))
    }

    async fn get(&mut self) {
        let (key, group) = self.some_key();
        let (node, limit) = (self.some_node(), self.limit());
        let now = self.cluster.now_ms();
        let Some(call) = self.record.history.call(self.name, &key, Action::Get, now) else {
            return;
        };
        let found = self.cluster.get(node, group, limit, |engine| access::read(engine, &key)).await;
        let outcome = match &found {
            Ok(Some((value, version))) => {
                self.versions.insert(key.clone(), *version);
                Seen::Ok(Answer::Found(linz::Value(*value), linz::Version(version.0)))
            }
            Ok(None) => {
                self.versions.insert(key.clone(), Version::ABSENT);
                Seen::Ok(Answer::Missing)
            }
            Err(_) => Seen::Failed,
        };
        self.ended(&key, outcome, found.err());
        self.record.history.returns(call, outcome, self.cluster.now_ms());
    }

    /// Counts how something ended; damage is no way to end.
    fn ended(&self, key: &str, outcome: Seen, error: Option<Error>) {
        self.record.trace((self.cluster.now_ms(), self.name, key, format!("{outcome:?}")));
        if let Some(error) = error
            && matches!(error.reason().kind(), Kind::Corruption | Kind::Internal)
        {
            self.record.violate(format!("client {}, {key}: {error}", self.name));
        }
        self.record.count(|counts| match outcome {
            Seen::Ok(_) => counts.answered += 1,
            Seen::Failed => counts.failed += 1,
            Seen::Unknown => counts.unknown += 1,
        });
    }

    async fn change(&mut self, repeats: bool) {
        let (key, group) = self.some_key();
        let if_version = match self.random.random_range(0..8) {
            0 => Some(Version::ABSENT),
            1 | 2 => self.versions.get(&key).copied(),
            _ => None,
        };
        let linz_version = if_version.map(|version| linz::Version(version.0));
        let (change, action) = if self.random.random_ratio(1, 5) {
            let change = Change::Delete { key: access::key(&key), if_version };
            (change, Action::Delete { if_version: linz_version })
        } else {
            let value = self.record.propose(&[&key]);
            let change = access::put(&key, value, self.filling(), if_version);
            (change, Action::Put { value: linz::Value(value), if_version: linz_version })
        };
        let now = self.cluster.now_ms();
        let Some(call) = self.record.history.call(self.name, &key, action, now) else { return };
        let ended = if repeats {
            self.propose_repeatedly(group, &change).await
        } else {
            let (node, limit) = (self.some_node(), self.limit());
            self.cluster.propose(node, group, change, None, limit).await
        };
        if let Ok(Outcome::Put { version } | Outcome::Mismatch { actual: version, .. }) = &ended {
            self.versions.insert(key.clone(), *version);
        }
        if let Ok(Outcome::RequestIdReused) = ended {
            self.record
                .violate(format!("client {}: a fresh request id was used before", self.name));
        }
        let outcome = seen(&ended);
        self.ended(&key, outcome, ended.err());
        self.record.history.returns(call, outcome, self.cluster.now_ms());
    }

    /// Proposes with a request id, here and there, until it is answered or it is time to give up. Now and then once more after the answer, which
    /// must be the same.
    async fn propose_repeatedly(&mut self, group: GroupId, change: &Change) -> Result<Outcome> {
        let request_id = self.request_id();
        let deadline = Instant::now() + REPEATS_FOR;
        let mut doubt = None;
        loop {
            let (node, limit) = (self.some_node(), self.limit());
            let ended =
                self.cluster.propose(node, group, change.clone(), Some(&request_id), limit).await;
            let error = match ended {
                Ok(outcome) => {
                    self.record.count(|counts| counts.settled += u64::from(doubt.is_some()));
                    self.repeat_answered(group, change, &request_id, outcome).await;
                    return Ok(outcome);
                }
                Err(error) => error,
            };
            if error.reason().kind() == Kind::Unknown {
                doubt = Some(error.clone());
            }
            if Instant::now() >= deadline {
                return Err(doubt.unwrap_or(error));
            }
            sleep(Duration::from_millis(self.random.random_range(1..50))).await;
        }
    }

    async fn repeat_answered(
        &mut self,
        group: GroupId,
        change: &Change,
        request_id: &str,
        outcome: Outcome,
    ) {
        if !self.random.random_ratio(1, 3) {
            return;
        }
        let (node, limit) = (self.some_node(), self.limit());
        let again =
            self.cluster.propose(node, group, change.clone(), Some(request_id), limit).await;
        let Ok(again) = again else { return };
        self.record.count(|counts| counts.repeated += 1);
        if again != outcome {
            let what = format!("{request_id}: answered {outcome:?}, and {again:?} when repeated");
            self.record.violate(what);
        }
    }

    async fn store_fresh(&mut self, repeats: bool) {
        let id = self.request_id();
        let key = format!("fresh-{id}");
        let group = GroupId(self.random.random_range(0..self.cluster.shape.groups));
        let value = self.record.propose(&[&key]);
        let change = access::put(&key, value, self.filling(), Some(Version::ABSENT));
        let ended = if repeats {
            self.propose_repeatedly(group, &change).await
        } else {
            let (node, limit) = (self.some_node(), self.limit());
            self.cluster.propose(node, group, change, None, limit).await
        };
        match ended {
            Ok(Outcome::Put { version }) => {
                self.record.promise(format!("{}/{key}", group.0), value, version);
            }
            Ok(other) => self.record.violate(format!("{key} is fresh and was answered {other:?}")),
            Err(_) => {}
        }
        self.ended(&key, seen(&ended), ended.err());
    }

    /// One number after the other under all keys of a batch, beside readers of them.
    async fn store_batches(mut self) {
        let keys: Vec<_> = (0..BATCH).map(|number| format!("batch-{number}")).collect();
        let group = GroupId(self.random.random_range(0..self.cluster.shape.groups));
        let cluster = Arc::clone(&self.cluster);
        let all = |engine: &dyn StorageEngine| {
            keys.iter().map(|key| access::read(engine, key)).collect::<Result<Vec<_>>>()
        };
        let mut acknowledged = 0;
        while self.goes_on() {
            let next = acknowledged + 1;
            let filling = self.filling();
            let entries = keys.iter().map(|key| (access::key(key), access::value(next, filling)));
            let change = Change::PutMany { entries: entries.collect(), ttl: None };
            let id = self.request_id();
            let mut settle = Box::pin(cluster.settle(group, &change, &id, Duration::from_mins(1)));
            let mut seen = acknowledged;
            let ended = loop {
                let node = self.some_node();
                let pause = Duration::from_millis(self.random.random_range(1..30));
                let get = async {
                    sleep(pause).await;
                    cluster.get(node, group, Duration::from_secs(1), all).await
                };
                tokio::select! {
                    biased;
                    ended = &mut settle => break ended,
                    found = get => {
                        if let Ok(found) = found {
                            seen = self.judge_batch(&found, seen, next);
                        }
                    }
                }
            };
            match ended {
                Ok(Outcome::PutMany { count }) if count as usize == BATCH => acknowledged = next,
                Ok(other) => self.record.violate(format!("a batch was answered {other:?}")),
                // Too long without a majority: what comes would have two numbers in doubt.
                Err(_) => return,
            }
            let node = self.some_node();
            if let Ok(found) = cluster.get(node, group, Duration::from_secs(1), all).await {
                self.judge_batch(&found, acknowledged, acknowledged);
            }
            self.record.count(|counts| counts.answered += 1);
            self.think().await;
        }
    }

    /// All keys of a batch have one number from `least` to `most`; which.
    fn judge_batch(&self, found: &[Option<(u64, Version)>], least: u64, most: u64) -> u64 {
        let numbers: Vec<_> = found.iter().map(|row| row.map_or(0, |(number, _)| number)).collect();
        let first = numbers.first().copied().unwrap_or(0);
        if numbers.iter().any(|number| *number != first) || !(least..=most).contains(&first) {
            let what = format!("a batch reads as {numbers:?}, expected one of {least} to {most}");
            self.record.violate(what);
        }
        first
    }

    /// Keys that expire: there before their time by the group's clock, and gone when it has come.
    async fn store_expiring(mut self) {
        while self.goes_on() {
            let id = self.request_id();
            let key = format!("ttl-{id}");
            let group = GroupId(self.random.random_range(0..self.cluster.shape.groups));
            let value = self.record.propose(&[&key]);
            let seconds = self.random.random_range(1..4);
            let change = access::put_for(&key, value, seconds);
            let before = self.group_clock(group).await;
            let called = Instant::now();
            let ended = self.cluster.settle(group, &change, &id, REPEATS_FOR).await;
            let after = self.group_clock(group).await;
            if let (Some(before), Ok(Outcome::Put { .. }), Some(after)) = (before, ended, after) {
                let life = Life { ttl: u64::from(seconds) * 1_000, called, before, after };
                self.watch_expiry(&key, group, life).await;
            }
            self.think().await;
        }
    }

    async fn group_clock(&mut self, group: GroupId) -> Option<u64> {
        let node = self.some_node();
        let clock = |engine: &dyn StorageEngine| Ok(engine.clock().as_millis());
        self.cluster.get(node, group, Duration::from_secs(1), clock).await.ok()
    }

    async fn watch_expiry(&mut self, key: &str, group: GroupId, life: Life) {
        let Life { ttl, called, before, after } = life;
        let deadline = Instant::now() + Duration::from_secs(6);
        while self.goes_on() && Instant::now() < deadline {
            let (node, limit) = (self.some_node(), Duration::from_secs(1));
            let look = |engine: &dyn StorageEngine| {
                Ok((engine.clock().as_millis(), access::read(engine, key)?.is_some()))
            };
            if let Ok((clock, there)) = self.cluster.get(node, group, limit, look).await {
                if (there && clock >= after + ttl) || (!there && clock < before + ttl) {
                    let what = if there { "still there" } else { "gone" };
                    self.record.violate(format!(
                        "{key}, stored between {before} and {after} for {ttl} ms, is {what} at {clock}"
                    ));
                }
                let lived = called.elapsed();
                if !there && lived < Duration::from_millis(ttl - ttl / 100) {
                    self.record.violate(format!("{key} lived for {lived:?} of {ttl} ms"));
                }
                if !there {
                    self.record.count(|counts| counts.expired += 1);
                    return;
                }
            }
            access::tick(&self.cluster, group).await;
            sleep(Duration::from_millis(self.random.random_range(50..300))).await;
        }
    }
}
