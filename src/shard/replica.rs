//! A shard's state on this node that committer and readers share: the engine, the last version, and how far groups are
//! settled.
//!
//! A group of writes is visible in the engine a moment before it is durable. What a read saw is only answered once it is
//! **settled**: durable as configured. Otherwise a crash could take back what somebody has already read.
//!
//! `settled <= begun`. `begun` moves before a group becomes visible, `settled` after it is durable; a reader that loads `begun` after its
//! read therefore waits for every group that it may have seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::error::{Error, Reason, Result};
use crate::storage::StorageEngine;
use crate::types::{ShardId, Version};

/// How far groups are durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Settled {
    number: u64,
    /// A group could not be made durable: what reads see from now on may be gone after a restart.
    failed: bool,
}

pub(super) struct Replica {
    pub(super) id: ShardId,
    pub(super) engine: Arc<dyn StorageEngine>,
    /// Written by the committer only.
    last_version: AtomicU64,
    begun: AtomicU64,
    settled_number: AtomicU64,
    settled: watch::Sender<Settled>,
    pub(super) writes: AtomicU64,
}

impl Replica {
    pub(super) fn new(id: ShardId, engine: Arc<dyn StorageEngine>, last_version: Version) -> Self {
        Self {
            id,
            engine,
            last_version: AtomicU64::new(last_version.0),
            begun: AtomicU64::new(0),
            settled_number: AtomicU64::new(0),
            settled: watch::Sender::new(Settled { number: 0, failed: false }),
            writes: AtomicU64::new(0),
        }
    }

    pub(super) fn last_version(&self) -> Version {
        Version(self.last_version.load(Ordering::Acquire))
    }

    /// Announces a group before anything of it is visible; its number. Committer only.
    pub(super) fn begin_group(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The group is in the engine. Committer only.
    pub(super) fn group_applied(&self, last_version: Version, commands: usize) {
        self.last_version.store(last_version.0, Ordering::Release);
        self.writes.fetch_add(commands as u64, Ordering::Relaxed);
    }

    /// The group is durable, or never will be. Committer only, in order of numbers.
    pub(super) fn settle(&self, number: u64, failed: bool) {
        if !failed && !self.settled.borrow().failed {
            self.settled_number.store(number, Ordering::Release);
        }
        self.settled.send_modify(|settled| {
            settled.number = number;
            settled.failed |= failed;
        });
    }

    /// Whether all that a read which has just returned may have seen is durable.
    pub(super) fn is_settled(&self) -> bool {
        self.begun.load(Ordering::Acquire) <= self.settled_number.load(Ordering::Acquire)
    }

    /// Waits until all that a read which has just returned may have seen is durable.
    ///
    /// # Errors
    ///
    /// READ_ONLY when that will never be, because the disk failed.
    pub(super) async fn settled(&self) -> Result<()> {
        if self.is_settled() {
            return Ok(());
        }
        let number = self.begun.load(Ordering::Acquire);
        let mut receiver = self.settled.subscribe();
        let reached = receiver.wait_for(|settled| settled.failed || settled.number >= number).await;
        let failed = reached.map_or(true, |settled| settled.failed);
        if failed {
            let message = format!(
                "{}: the disk failed, what is read here may be gone after a restart; consistency STALE reads it all the same",
                self.id
            );
            return Err(Error::new(Reason::ReadOnly, message));
        }
        Ok(())
    }
}
