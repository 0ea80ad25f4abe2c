//! openraft's own suite for storage: on the real file system with the log's threads, on the simulated one without.

use std::time::Duration;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tokio::runtime::Builder;
use tokio::task::JoinHandle;

use super::machine::Machine;
use super::*;
use crate::raft::types::TypeConfig;
use crate::util::fs::RealFileSystem;

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
struct Simulated(SimFileSystem);

impl StoreBuilder<TypeConfig, GroupLog, Machine, Driver> for Simulated {
    async fn build(&self) -> Result<(Driver, GroupLog, Machine), StorageError<TypeConfig>> {
        let fs = self.0.restart(3);
        let store = open(&fs).expect("opened");
        let log = store.group(GROUP);
        Ok((Driver::start(store), log, Machine::default()))
    }
}

pub(super) fn passes_on(fs: &SimFileSystem) {
    passes_in(Builder::new_current_thread().start_paused(true), Simulated(fs.clone()));
}

#[test]
fn the_suite_passes_on_the_simulated_file_system() {
    passes_on(&SimFileSystem::new(1));
}
