//! One replica's state on this node: the engine that a group's committed entries are applied to, and what is known of it.
//!
//! [`ReplicaState`] is shared: [`StateMachine`] writes, readers and the node look. The log is the write-ahead log, so the engine is written
//! without durability, and a restart believes what was flushed and applies the rest again.
//!
//! # Invariants
//!
//! * **One batch**: what entries change, the clock, the applied log id and the membership. A flush has all of it or nothing.
//! * **`flushed <= applied <= durable in the local log`**: a chunk of entries is applied once the log has it durably, so no flush is
//!   ahead of the log. Only what was flushed authorises the log to be purged.
//! * **The same entries give the same rows**, in whatever chunks, on whatever engine, with whatever restarts and snapshots between
//!   ([`state_hash`]). Time comes with the entries.
//!
//! # Generations
//!
//! A snapshot of the leader does not change the engine there is, it comes as another one: the **generation** after. The group's log says
//! which one is current, so that one record of it is the step from the old state to the new.
//!
//! | step | after a crash then |
//! |---|---|
//! | the received checkpoint is installed under the next generation's name, and opened | the old state; what is of another generation is removed at open |
//! | the log makes that generation current, durably | the new state |
//! | readers get the new engine, then the old one is removed as soon as nobody reads it | the new state; the old engine is removed at open |
//!
//! Engines are called `shard-N` in generation 0 and `shard-N-G` in generation G of group N; those of the meta group `meta` and `meta-G`.
//!
//! Callers: the node opens states and gives the machine to openraft; shards read; the network stages what it received.

mod apply;
mod generation;
mod hash;
mod rows;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use parking_lot::Mutex;

pub use self::apply::StateMachine;
use self::generation::Generation;
pub use self::generation::Unflushed;
pub use self::hash::state_hash;
pub use self::snapshot::{Received, SnapshotBuilder, SnapshotData};
use super::blocking::blocking;
use super::types::{GroupId, LogId, StoredMembership};
use crate::error::{Error, Reason, Result};
use crate::storage::{Environment, StorageEngine};
use crate::types::Version;

/// How often a full disk is tried again.
const ROOM_POLL: Duration = Duration::from_millis(500);

/// How long, in all. The replica gives up then, and takes part again after a restart.
const ROOM_WAIT_MAX: Duration = Duration::from_mins(10);

/// What a replica's state needs of its group's log.
pub trait StateLog: Send + Sync + 'static {
    /// The generation of the state that is current; 0 when none was made so.
    fn generation(&self) -> u64;

    /// Makes `generation` the current one, durably. After an error nobody knows whether it is.
    fn set_generation(&self, generation: u64) -> BoxFuture<'static, io::Result<()>>;

    /// Waits until all entries up to `index` are durable. An error is final.
    fn durable(&self, index: u64) -> BoxFuture<'static, io::Result<()>>;
}

/// See the [module](self).
pub struct ReplicaState {
    // Constant.
    group: GroupId,
    environment: Arc<dyn Environment>,
    log: Arc<dyn StateLog>,
    // Own synchronisation.
    current: ArcSwap<Generation>,
    /// No generation of this number or a later one was ever staged here.
    next_generation: AtomicU64,
    writes: AtomicU64,
    /// Engines that nobody needs, until they are removed.
    retired: Mutex<Vec<String>>,
}

impl ReplicaState {
    /// Opens the state that `log` says is current, or begins an empty one, and removes what a crash left of others. Blocks.
    ///
    /// # Errors
    ///
    /// What the engine fails with; CORRUPTION when the state is not there, or its rows make no sense.
    pub fn open(
        environment: Arc<dyn Environment>,
        group: GroupId,
        log: Arc<dyn StateLog>,
    ) -> Result<Arc<Self>> {
        let number = log.generation();
        let name = engine_name(group, number);
        let (current, others): (Vec<_>, Vec<_>) =
            engines_of(&*environment, group)?.into_iter().partition(|found| *found == name);
        if current.is_empty() && number > 0 {
            let message =
                format!("{group}: its log says that the state is in {name}, which is gone");
            return Err(Error::new(Reason::Corruption, message));
        }
        for other in others {
            environment.remove(&other)?;
        }
        let generation = Generation::open(&*environment, number, name)?;
        Ok(Arc::new(Self {
            group,
            environment,
            log,
            current: ArcSwap::from_pointee(generation),
            next_generation: AtomicU64::new(number + 1),
            writes: AtomicU64::new(0),
            retired: Mutex::default(),
        }))
    }

    /// Removes all that there is of `group`, which must not be open. Blocks.
    ///
    /// # Errors
    ///
    /// What the environment fails with.
    pub fn remove(environment: &dyn Environment, group: GroupId) -> Result<()> {
        for name in engines_of(environment, group)? {
            environment.remove(&name)?;
        }
        Ok(())
    }

    /// Removes all that there is of groups that are not in `held`. Blocks.
    ///
    /// # Errors
    ///
    /// What the environment fails with.
    pub fn remove_others<T>(
        environment: &dyn Environment,
        held: &BTreeMap<GroupId, T>,
    ) -> Result<()> {
        for name in environment.list()? {
            if !held.keys().any(|group| is_engine_of(*group, &name)) {
                environment.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Which group's it is.
    pub const fn group(&self) -> GroupId {
        self.group
    }

    /// The engine of now, to keep for one read: after an installation the next call gives another one, and this one is removed when it is let go.
    pub fn engine(&self) -> Arc<dyn StorageEngine> {
        Arc::clone(&self.current.load().engine)
    }

    /// Reads from the engine of now, which is cheaper than to keep it.
    pub fn with_engine<T>(&self, read: impl FnOnce(&dyn StorageEngine) -> T) -> T {
        read(&*self.current.load().engine)
    }

    /// The last entry that was applied.
    pub fn applied(&self) -> Option<LogId> {
        self.current.load().progress.lock().applied.last_log_id
    }

    /// The members, as of the entries that were applied.
    pub fn membership(&self) -> StoredMembership {
        self.current.load().progress.lock().applied.last_membership.clone()
    }

    /// The last entry that is known to be flushed: no more of the log may be purged.
    pub fn flushed(&self) -> Option<LogId> {
        self.current.load().progress.lock().flushed.last_log_id
    }

    /// What was applied and is not known to be flushed: tells when a snapshot is worth its flush.
    pub fn unflushed(&self) -> Unflushed {
        self.current.load().progress.lock().unflushed()
    }

    /// The newest version given out.
    pub fn last_version(&self) -> Version {
        self.current.load().progress.lock().last_version
    }

    /// Commands applied since it was opened.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Removes the engines that nobody needs, as far as nobody reads them.
    fn remove_retired(&self) {
        let mut retired = self.retired.lock();
        if retired.is_empty() {
            return;
        }
        // One that is still read, or cannot be removed now, is tried again with the next chunk and at last when the state is opened.
        blocking(|| retired.retain(|name| self.environment.remove(name).is_err()));
    }

    /// Does `work`, a write to the engine, again and again while it meets a full disk. What is committed cannot be skipped, and deleting elsewhere
    /// makes room.
    async fn with_room<T>(&self, what: &str, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let mut waited = Duration::ZERO;
        loop {
            // To move the other tasks out of the way costs more than most writes do.
            let done = if self.with_engine(StorageEngine::may_wait) {
                blocking(&mut work)
            } else {
                work()
            };
            match done {
                Err(error) if error.reason() == Reason::DiskFull && waited < ROOM_WAIT_MAX => {
                    if waited.is_zero() {
                        tracing::warn!(group = %self.group, %error, "no room for {what}; trying again");
                    }
                    tokio::time::sleep(ROOM_POLL).await;
                    waited += ROOM_POLL;
                }
                done => return done,
            }
        }
    }
}

fn engine_name(group: GroupId, generation: u64) -> String {
    let first = match group {
        GroupId::META => "meta".to_owned(),
        GroupId(number) => format!("shard-{number}"),
    };
    match generation {
        0 => first,
        later => format!("{first}-{later}"),
    }
}

/// The names of the engines of `group`, of whatever generation.
fn engines_of(environment: &dyn Environment, group: GroupId) -> Result<Vec<String>> {
    let mut names = environment.list()?;
    names.retain(|name| is_engine_of(group, name));
    Ok(names)
}

fn is_engine_of(group: GroupId, name: &str) -> bool {
    let is_generation = |rest: &str| {
        rest.is_empty()
            || rest.strip_prefix('-').is_some_and(|number| number.parse::<u64>().is_ok())
    };
    name.strip_prefix(&engine_name(group, 0)).is_some_and(is_generation)
}

/// How openraft is told; the cause stays.
fn to_io(error: Error) -> io::Error {
    io::Error::other(error)
}
