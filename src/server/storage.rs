//! Opens what a node stores: the environment of the configured engine, its shards with their committers, and the tasks that keep them
//! going.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::{Cluster, engine_reserve};
use super::forming;
use super::identity::DataDirectory;
use crate::backup::shard_directory;
use crate::config::{Config, Engine, SyncMode};
use crate::error::Reason;
use crate::router::Router;
use crate::shard::{Committer, Shard};
use crate::storage::lsm::{LsmEnvironment, LsmOptions};
use crate::storage::memory::MemoryEnvironment;
use crate::storage::sled::{SledEnvironment, SledOptions};
use crate::storage::{Durability, Environment, WriteBatch};
use crate::types::ShardId;
use crate::util::fs::RealFileSystem;
use crate::util::time::{Clock, SystemClock};

/// Most committers of a node. More would sync more often for fewer writes each.
const COMMITTERS_MAX: usize = 4;

/// How often shards look for keys that have expired; a key is gone well within a second of its time.
const TICK: Duration = Duration::from_millis(200);

/// A node's storage, open.
pub(super) struct Storage {
    pub(super) environment: Arc<dyn Environment>,
    pub(super) router: Router,
    /// The cluster that the node is a member of; `None` when it runs alone.
    pub(super) cluster: Option<Arc<Cluster>>,
    /// Dropped after the last handle of the API: they write what is queued, then stop.
    committers: Vec<Committer>,
    /// Of a node that runs alone; its cluster holds that of a member.
    _directory: Option<DataDirectory>,
}

impl Storage {
    /// Opens the data directory, or creates it. Blocks. Called on the runtime that a cluster's tasks shall run on.
    pub(super) fn open(config: &Config, stopping: &CancellationToken) -> Result<Self, Error> {
        let directory = if config.storage.engine == Engine::Memory {
            None
        } else {
            Some(DataDirectory::open(&RealFileSystem, config)?)
        };
        let environment = open_environment(config)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let local = match &directory {
            Some(directory) => forming::local(&directory.identity, config)?,
            None => None,
        };
        match (directory, local) {
            (Some(directory), Some(local)) => {
                let shared = Arc::clone(&environment);
                let cluster = Cluster::open(config, directory, local, shared, stopping.clone())?;
                let router = cluster.router();
                let cluster = Some(Arc::new(cluster));
                let committers = Vec::new();
                Ok(Self { environment, router, cluster, committers, _directory: None })
            }
            (directory, _) => {
                let (shards, committers) = open_shards(config, &*environment, &clock)?;
                let router = Router::new(shards);
                Ok(Self { environment, router, cluster: None, committers, _directory: directory })
            }
        }
    }

    /// Starts what runs beside requests: moving the shards' clocks and, where configured so, syncing at intervals.
    pub(super) fn start_tasks(
        &self,
        config: &Config,
        stopping: &CancellationToken,
    ) -> Vec<JoinHandle<()>> {
        let mut tasks = vec![tokio::spawn(move_clocks(self.router.clone(), stopping.clone()))];
        if config.storage.sync == SyncMode::Interval && self.cluster.is_none() {
            let every = config.storage.sync_interval;
            tasks.push(tokio::spawn(sync_at_intervals(
                self.router.clone(),
                every,
                stopping.clone(),
            )));
        }
        tasks
    }

    /// Writes what is queued and flushes the engines. Blocks.
    pub(super) fn close(self) -> Result<(), Error> {
        drop(self.committers);
        match self.router.flush() {
            // A member that never met its cluster has nothing to flush.
            Err(error) if error.reason() != Reason::NotServing => {
                Err(Error::Storage(error.to_string()))
            }
            _ => Ok(()),
        }
    }
}

/// The shards of a node that runs alone, and who commits their writes.
fn open_shards(
    config: &Config,
    environment: &dyn Environment,
    clock: &Arc<dyn Clock>,
) -> Result<(Vec<Shard>, Vec<Committer>), Error> {
    let durability = match config.storage.sync {
        SyncMode::Always => Durability::Sync,
        SyncMode::Interval | SyncMode::Never => Durability::Buffered,
    };
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let committers = (0..cores.min(COMMITTERS_MAX))
        .map(|number| Committer::start(format!("commit-{number}"), durability, Arc::clone(clock)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Error::Thread)?;
    let shards = (0..config.hash_ring.shards)
        .map(|number| {
            let engine = environment.open(&shard_directory(number))?;
            let committer = &committers[number as usize % committers.len()];
            Shard::open(ShardId(number), engine, committer, Arc::clone(clock))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::Storage(error.to_string()))?;
    Ok((shards, committers))
}

/// Opens the engines' directory within the data directory, or creates it.
pub(super) fn open_environment(config: &Config) -> Result<Arc<dyn Environment>, Error> {
    let storage = &config.storage;
    let engine = storage.engine.as_str();
    let in_cluster = !config.cluster.members.is_empty();
    let disk_reserve_bytes =
        if in_cluster { engine_reserve(storage.disk_free_min) } else { storage.disk_free_min };
    let failed = |error: crate::storage::Error| Error::Storage(error.to_string());
    match storage.engine {
        Engine::Sled => {
            let options = SledOptions {
                cache_bytes: storage.block_cache_max_size as u64,
                disk_reserve_bytes,
                ..SledOptions::default()
            };
            let environment =
                SledEnvironment::open(storage.data_dir.join(engine), options).map_err(failed)?;
            Ok(Arc::new(environment))
        }
        Engine::Memory => Ok(Arc::new(MemoryEnvironment::new())),
        Engine::Lsm => {
            let options = LsmOptions {
                memtable_bytes: storage.memtable_max_size,
                memtables_bytes_max: 4 * storage.memtable_max_size,
                cache_bytes: storage.block_cache_max_size,
                open_files_max: storage.open_files_max,
                table_bytes_max: storage.sstable_max_size as u64,
                // In a cluster the log of the groups is the log.
                log: !in_cluster,
                compaction: config.compaction.enabled,
                compaction_interval: config.compaction.interval,
                disk_reserve_bytes,
                ..LsmOptions::new(rand::random())
            };
            let directory = storage.data_dir.join(engine);
            let environment = LsmEnvironment::open(Arc::new(RealFileSystem), directory, options);
            Ok(Arc::new(environment.map_err(failed)?))
        }
    }
}

async fn move_clocks(router: Router, stopping: CancellationToken) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        // A full queue or a failed disk is told to those who write; the next tick tries again.
        let moved = router.shards().iter().filter_map(|shard| shard.tick().ok().flatten());
        join_all(moved).await;
    }
}

async fn sync_at_intervals(router: Router, every: Duration, stopping: CancellationToken) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        let shards = router.clone();
        let synced = tokio::task::spawn_blocking(move || {
            for shard in shards.shards() {
                let synced = shard.engine().and_then(|engine| {
                    engine.write(&WriteBatch::new(), Durability::Sync).map_err(Into::into)
                });
                if let Err(error) = synced {
                    tracing::error!(shard = %shard.id(), %error, "a sync failed");
                }
            }
        });
        if synced.await.is_err() {
            return;
        }
    }
}
