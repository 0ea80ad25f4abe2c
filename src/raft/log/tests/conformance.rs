//! openraft's own suite for storage: on the real file system with the log's threads, on the simulated one without, and on
//! what a crash has left of another log.

use std::time::Duration;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tokio::runtime::Builder;
use tokio::task::JoinHandle;

use super::machine::Machine;
use super::workload::{GROUPS, Run, World};
use super::*;
use crate::raft::types::TypeConfig;
use crate::util::fs::RealFileSystem;
use crate::util::fs::sim::Operation;

const GROUP: GroupId = GroupId(7);

/// A log in a directory of its own for each test of the suite.
struct OnDisk {
    cache_bytes: usize,
}

impl StoreBuilder<TypeConfig, GroupLog, Machine, (tempfile::TempDir, LogStore)> for OnDisk {
    async fn build(
        &self,
    ) -> Result<((tempfile::TempDir, LogStore), GroupLog, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache_bytes = self.cache_bytes;
        let options = LogOptions { cache_bytes, background: Background::Threads, ..small(5) };
        let store = LogStore::open(Arc::new(RealFileSystem), dir.path().to_owned(), options);
        let store = store.expect("opened");
        let log = store.group(GROUP);
        Ok(((dir, store), log, Machine::default()))
    }
}

#[test]
fn the_suite_passes_on_the_real_file_system() {
    passes_in(&mut Builder::new_multi_thread(), OnDisk { cache_bytes: 0 });
}

#[test]
fn the_suite_passes_on_the_real_file_system_when_all_is_read_from_memory() {
    passes_in(Builder::new_current_thread().start_paused(true), OnDisk { cache_bytes: 1 << 20 });
}

fn passes_in<B, G: Send + Sync>(runtime: &mut Builder, builder: B)
where
    B: StoreBuilder<TypeConfig, GroupLog, Machine, G>,
{
    let runtime = runtime.worker_threads(2).enable_time().build().expect("a runtime");
    runtime.block_on(Suite::test_all(builder)).expect("the suite passes");
}

/// Syncs and maintains, in virtual time, until it is dropped.
struct Driver(JoinHandle<()>);

impl Driver {
    fn start(store: LogStore) -> Self {
        Self(tokio::spawn(async move {
            loop {
                store.drive();
                store.maintain().expect("maintained");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A log on a simulated disk, or on what is left of one.
struct Simulated {
    fs: SimFileSystem,
    /// Had a log before, which is forgotten first.
    used: Option<GroupId>,
}

impl StoreBuilder<TypeConfig, GroupLog, Machine, Driver> for Simulated {
    async fn build(&self) -> Result<(Driver, GroupLog, Machine), StorageError<TypeConfig>> {
        let store = open(&self.fs.restart(3)).expect("opened");
        if let Some(used) = self.used {
            done(&store, store.forget(used)).expect("forgotten");
        }
        let log = store.group(self.used.unwrap_or(GROUP));
        Ok((Driver::start(store), log, Machine::default()))
    }
}

fn passes_on(fs: &SimFileSystem, used: Option<GroupId>) {
    let simulated = Simulated { fs: fs.clone(), used };
    passes_in(Builder::new_current_thread().start_paused(true), simulated);
}

#[test]
fn the_suite_passes_on_the_simulated_file_system() {
    passes_on(&SimFileSystem::new(1), None);
}

#[test]
fn the_suite_passes_on_what_a_crash_at_any_sync_has_left() {
    const STEPS: u32 = 40;
    let run = |step: Option<u64>| {
        let fs = SimFileSystem::new(9);
        if let Some(step) = step {
            fs.crash_at(step);
        }
        if let Ok(store) = open(&fs) {
            let _ = Run::new(store, World::new(), 9).steps(STEPS);
        }
        fs
    };
    let syncs = run(None).log();
    let syncs = syncs
        .iter()
        .filter(|entry| matches!(entry.operation, Operation::Sync | Operation::SyncDir));
    let syncs: Vec<_> = syncs.map(|entry| entry.step).collect();
    assert!(syncs.len() > 20, "the workload shows nothing: {syncs:?}");
    for (step, used) in syncs.into_iter().zip((0..GROUPS).map(GroupId).cycle()) {
        passes_on(&run(Some(step)).restart(step), (step % 2 == 0).then_some(used));
    }
}
