//! All that a read of an engine may have to ask, at one moment: the active memtable, the sealed ones, the tables.
//!
//! A [`Tree`] never changes, but for its active memtable; the engine has one that is the present one. Whoever reads
//! takes hold of that first, and only then of the moment to read at, which is that of its active memtable: the other
//! order would let a flush or a compaction take away what the moment needs. A view keeps its tree, and with it memtables
//! and tables, so that flushes and compactions need not know of views at all.

use std::sync::Arc;

use super::memtable::{Memtable, Moment};
use super::version::Version;
use crate::storage::Seqno;
use crate::wal::Position;

/// A memtable that takes no more writes and waits for its flush.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) memtable: Arc<Memtable>,
    /// Everything that is in it lies before this place of the log.
    pub(super) log_end: Position,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) active: Arc<Memtable>,
    /// From the newest to the oldest.
    pub(super) sealed: Vec<Arc<Sealed>>,
    pub(super) version: Arc<Version>,
}

impl Tree {
    /// The memtables, from the newest to the oldest.
    #[inline]
    pub(super) fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        std::iter::once(&self.active).chain(self.sealed.iter().map(|sealed| &sealed.memtable))
    }

    /// The moment that reads happen at.
    #[inline]
    pub(super) fn moment(&self) -> Moment {
        self.active.moment()
    }

    /// The tree after its active memtable was sealed.
    pub(super) fn with_active(&self, active: Arc<Memtable>, log_end: Position) -> Self {
        let sealed = Arc::new(Sealed { memtable: Arc::clone(&self.active), log_end });
        let sealed = std::iter::once(sealed).chain(self.sealed.iter().cloned()).collect();
        Self { active, sealed, version: Arc::clone(&self.version) }
    }

    /// The tree over another version, without the memtables that are in it whole.
    pub(super) fn with_version(&self, version: Arc<Version>) -> Self {
        let flushed = version.flushed().seqno;
        let waits = |sealed: &&Arc<Sealed>| sealed.memtable.moment().seqno > flushed;
        let sealed = self.sealed.iter().filter(waits).cloned().collect();
        Self { active: Arc::clone(&self.active), sealed, version }
    }

    /// The newest write in it.
    pub(super) fn seqno(&self) -> Seqno {
        self.moment().seqno
    }

    /// Memory of its memtables, in bytes.
    pub(super) fn memtable_bytes(&self) -> usize {
        self.memtables().map(|memtable| memtable.memory_bytes()).sum()
    }
}
