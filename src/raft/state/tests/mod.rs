//! What a replica's state promises, on all engines: the same entries give the same state (`apply`), a restart goes on from what was flushed
//! (`restart`), snapshots (`snapshots`), and all of it below openraft (`group`).

mod apply;
mod group;
mod history;
mod restart;
mod snapshots;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::FutureExt as _;
use openraft::EntryPayload;
use openraft::storage::{RaftSnapshotBuilder as _, RaftStateMachine as _};
use tempfile::TempDir;
use tokio::sync::watch;

use self::history::{History, entry};
use super::super::types::{Entry, Outcomes, Payload, SnapshotMeta};
use super::*;
use crate::command::{Change, Command, Outcome, Proposal, TtlSeconds};
use crate::machine::StoredRow;
use crate::storage::lsm::{LsmEnvironment, LsmOptions};
use crate::storage::memory::MemoryEnvironment;
use crate::storage::sled::{SledEnvironment, SledOptions};
use crate::storage::{Direction, KeyRange, Seqno};
use crate::types::{Key, RequestId, Value};
use crate::util::fs::sim::SimFileSystem;
use crate::util::fs::{FileSystem as _, read_file, replace_file};
use crate::util::time::Timestamp;

const GROUP: GroupId = GroupId(3);

/// When histories begin: late enough to turn the clock back.
const NOON: u64 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lsm,
    Sled,
    Memory,
}

const KINDS: [Kind; 3] = [Kind::Lsm, Kind::Sled, Kind::Memory];

/// The disks of the nodes of a test, each in a directory of its own.
struct Disks {
    kind: Kind,
    seed: u64,
    fs: SimFileSystem,
    real: TempDir,
    checkpoints: u64,
}

impl Disks {
    fn new(kind: Kind, seed: u64) -> Self {
        let real = tempfile::tempdir().expect("a temporary directory");
        Self { kind, seed, fs: SimFileSystem::new(seed), real, checkpoints: 0 }
    }

    /// The environment of `node`; in memory always an empty one.
    fn open(&self, node: u64) -> Arc<dyn Environment> {
        match self.kind {
            Kind::Lsm => lsm(&self.fs, node, self.seed).expect("opens"),
            Kind::Memory => Arc::new(MemoryEnvironment::new()),
            Kind::Sled => {
                let directory = self.real.path().join(node.to_string());
                let options = SledOptions { cache_bytes: 1 << 20, ..SledOptions::default() };
                Arc::new(SledEnvironment::open(directory, options).expect("opens"))
            }
        }
    }

    /// Where a checkpoint may be put.
    fn new_directory(&mut self) -> PathBuf {
        self.checkpoints += 1;
        let name = format!("checkpoint-{}", self.checkpoints);
        match self.kind {
            Kind::Lsm => PathBuf::from("/").join(name),
            Kind::Sled | Kind::Memory => self.real.path().join(name),
        }
    }
}

/// An environment without a log of its own, in which a few writes do everything.
fn lsm(
    fs: &SimFileSystem,
    node: u64,
    seed: u64,
) -> Result<Arc<LsmEnvironment>, crate::storage::Error> {
    let options = LsmOptions { log: false, threads: 0, ..LsmOptions::tiny(seed) };
    let directory = format!("/node-{node}");
    Ok(Arc::new(LsmEnvironment::open(Arc::new(fs.clone()), directory, options)?))
}

/// A log that has everything, as far as it is told so.
struct LogStub {
    generation: AtomicU64,
    /// All up to here is durable; `None`: the log has failed.
    durable: watch::Sender<Option<u64>>,
    /// Keeps the generation.
    file: Option<(SimFileSystem, PathBuf)>,
}

impl LogStub {
    fn new() -> Arc<Self> {
        let (generation, durable) = (AtomicU64::new(0), watch::Sender::new(Some(u64::MAX)));
        Arc::new(Self { generation, durable, file: None })
    }

    /// One that keeps its generation on `fs`.
    fn on(fs: &SimFileSystem, directory: &str) -> io::Result<Arc<Self>> {
        let directory = PathBuf::from(directory);
        fs.create_dir_all(&directory)?;
        fs.sync_dir(directory.parent().expect("it has one"))?;
        // What a killed process has left counts from here on.
        fs.sync_dir(&directory)?;
        let generation = match read_file(fs, &directory.join("generation"), 8) {
            Ok(bytes) => u64::from_le_bytes(bytes.try_into().expect("8 bytes")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let (generation, durable) =
            (AtomicU64::new(generation), watch::Sender::new(Some(u64::MAX)));
        Ok(Arc::new(Self { generation, durable, file: Some((fs.clone(), directory)) }))
    }
}

impl StateLog for LogStub {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn set_generation(&self, generation: u64) -> BoxFuture<'static, io::Result<()>> {
        let kept = self.file.as_ref().map_or(Ok(()), |(fs, directory)| {
            replace_file(fs, directory, "generation", &generation.to_le_bytes())
        });
        if kept.is_ok() {
            self.generation.store(generation, Ordering::SeqCst);
        }
        async move { kept }.boxed()
    }

    fn durable(&self, index: u64) -> BoxFuture<'static, io::Result<()>> {
        let mut durable = self.durable.subscribe();
        async move {
            let reached = durable.wait_for(|upto| upto.is_none_or(|upto| upto >= index)).await;
            let failed = reached.map_or(true, |upto| upto.is_none());
            if failed { Err(io::Error::other("the log has failed")) } else { Ok(()) }
        }
        .boxed()
    }
}

fn open(environment: &Arc<dyn Environment>, log: &Arc<LogStub>) -> Arc<ReplicaState> {
    ReplicaState::open(Arc::clone(environment), GROUP, log.clone()).expect("opens")
}

/// Applies `entries` as openraft would; what came of them.
async fn apply(state: &ReplicaState, entries: &[Entry]) -> io::Result<Vec<Outcomes>> {
    let mut outcomes = Vec::new();
    let stream = futures::stream::iter(entries.iter().cloned().map(|entry| Ok((entry, ()))));
    state.apply(stream, |(), outcome| outcomes.push(outcome)).await?;
    Ok(outcomes)
}

/// The position of the next entry to apply.
fn next(state: &ReplicaState) -> usize {
    state.applied().map_or(0, |log_id| usize::try_from(log_id.index).expect("small") + 1)
}

fn hash(state: &ReplicaState) -> u64 {
    state.with_engine(state_hash).expect("reads")
}

/// Builds a snapshot as openraft would; what it covers.
async fn build(state: &Arc<ReplicaState>) -> io::Result<SnapshotMeta> {
    let mut machine = StateMachine::new(Arc::clone(state));
    let mut builder = machine.try_create_snapshot_builder(true).await.expect("is forced");
    Ok(builder.build_snapshot().await?.meta)
}

/// A proposal of one command.
fn proposal(stamp: u64, command: Command) -> Payload {
    let stamp = Timestamp::from_millis(stamp);
    EntryPayload::Normal(Proposal::encode(stamp, [&command].into_iter()))
}

fn put(key: &str, text: &str, ttl: u32) -> Command {
    let key = Key::new(key.to_owned()).expect("a key");
    let value = Value::Json(text.to_owned().into());
    let change = Change::Put { key, value, ttl: TtlSeconds::new(ttl), if_version: None };
    Command { change, request_id: None }
}

fn put_once(id: &str, key: &str, text: &str) -> Command {
    Command { request_id: RequestId::new(id), ..put(key, text, 0) }
}

/// Lets everything run that can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// A key's text, version and expiry.
type Document = (String, Version, Option<Timestamp>);

/// All that can be read.
fn documents(state: &ReplicaState) -> BTreeMap<String, Document> {
    state.with_engine(|engine| {
        let mut scan = engine.scan(KeyRange::ALL, Direction::Forward).expect("scans");
        let mut found = BTreeMap::new();
        while let Some(row) = scan.next().expect("reads") {
            let stored = StoredRow::read(row.key, row.value).expect("a row");
            if let StoredRow::Document { key, value, version } = stored {
                let text = String::from_utf8(value.bytes().to_vec()).expect("text");
                found.insert(key.to_owned(), (text, version, row.expires_at));
            }
        }
        found
    })
}
