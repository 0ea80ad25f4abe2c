//! One engine: its tree, who may change it, and why it may have stopped taking writes. `write.rs`, `flush.rs`,
//! `compact.rs`, `checkpoint.rs`, `recovery.rs` and `status.rs` have what it does, phase by phase; here is what they
//! share.
//!
//! # Locks, in the order in which they may be taken
//!
//! | lock | held | over |
//! |---|---|---|
//! | `flushing` | by one flush at a time | writing a table, the manifest |
//! | `running` | while a compaction is picked | reading range deletions |
//! | `writer` | by one writer at a time | memory only, and taking a place in the log |
//! | `manifest` | while an edit is made durable | a sync |
//! | `switch` | while the tree is exchanged | nothing |
//!
//! Readers take none of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};

use super::catalogue::EngineId;
use super::compaction::pacer::{Load, Pacer};
use super::compaction::picker::{Running, debt_bytes};
use super::files::TableDirectory;
use super::manifest::Manifest;
use super::memtable::{Memtable, Moment};
use super::shared::{Failure, Shared, changed_nothing};
use super::status::Figures;
use super::tree::Tree;
use super::version::VersionEdit;
use crate::storage::{Error, Result, Seqno};
use crate::util::interleave;
use crate::wal::{Owner, Position};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Engine {
    // Constant.
    id: EngineId,
    pub(super) shared: Arc<Shared>,
    pub(super) directory: Arc<TableDirectory>,
    // Own synchronisation.
    tree: ArcSwap<Tree>,
    /// The newest write that a power loss would not take, as far as is known.
    durable: AtomicU64,
    failure: Failure,
    aborted: AtomicBool,
    pub(super) wants_space: AtomicBool,
    pub(super) wants_flush: AtomicBool,
    pub(super) figures: Figures,
    pub(super) pacer: Pacer,
    // Locks, see above.
    pub(super) flushing: Mutex<()>,
    /// The compactions that run.
    pub(super) running: Mutex<Running>,
    pub(super) writer: Mutex<Writer>,
    manifest: Mutex<Manifest>,
    switch: Mutex<()>,
    /// The last failure of work in the background that may go away by itself; `progress` is signalled with each change,
    /// and whenever the tree becomes lighter.
    pub(super) trouble: Mutex<Option<Error>>,
    pub(super) progress: Condvar,
}

/// What the one writer goes by.
#[derive(Debug)]
pub(super) struct Writer {
    /// The newest write.
    pub(super) last: Seqno,
    /// Its place in the log, if it has one.
    pub(super) position: Option<Position>,
}

impl Engine {
    /// Goes on from what the manifest says.
    pub(super) fn new(
        id: EngineId,
        shared: Arc<Shared>,
        directory: Arc<TableDirectory>,
        manifest: Manifest,
    ) -> Arc<Self> {
        let version = Arc::clone(manifest.version());
        let flushed = version.flushed();
        let moment = Moment { seqno: flushed.seqno, clock: flushed.clock };
        let active = Arc::new(Memtable::new(moment));
        let pacer = Pacer::new(shared.options.pacer.clone());
        let engine = Arc::new(Self {
            id,
            shared,
            directory,
            tree: ArcSwap::from_pointee(Tree { active, sealed: Vec::new(), version }),
            durable: AtomicU64::new(flushed.seqno.0),
            failure: Failure::default(),
            aborted: AtomicBool::new(false),
            wants_space: AtomicBool::new(false),
            wants_flush: AtomicBool::new(false),
            figures: Figures::default(),
            pacer,
            flushing: Mutex::new(()),
            running: Mutex::default(),
            writer: Mutex::new(Writer { last: flushed.seqno, position: None }),
            manifest: Mutex::new(manifest),
            switch: Mutex::new(()),
            trouble: Mutex::new(None),
            progress: Condvar::new(),
        });
        engine.report_load();
        engine
    }

    pub(super) const fn id(&self) -> EngineId {
        self.id
    }

    /// Its owner in the log.
    pub(super) const fn owner(&self) -> Owner {
        Owner(self.id.0)
    }

    /// The tree, for a short read.
    #[inline]
    pub(super) fn tree(&self) -> arc_swap::Guard<Arc<Tree>> {
        self.tree.load()
    }

    /// The tree and the moment to read at, for a short read. In this order, see [`Tree`].
    #[inline]
    pub(super) fn pin(&self) -> (arc_swap::Guard<Arc<Tree>>, Moment) {
        let tree = self.tree();
        interleave::at("tree");
        let moment = tree.moment();
        interleave::at("tree");
        (tree, moment)
    }

    /// The tree and the moment to read at, to keep.
    pub(super) fn pin_owned(&self) -> (Arc<Tree>, Moment) {
        let (tree, moment) = self.pin();
        (arc_swap::Guard::into_inner(tree), moment)
    }

    /// The tree, to keep.
    pub(super) fn tree_owned(&self) -> Arc<Tree> {
        self.tree.load_full()
    }

    /// Makes the edit durable, then the tree that it leads to the present one.
    pub(super) fn commit_edit(&self, edit: &VersionEdit) -> Result<()> {
        let mut manifest = self.manifest.lock();
        let version = manifest.commit(edit)?;
        {
            let _switch = self.switch.lock();
            let tree = self.tree.load();
            self.tree.store(Arc::new(tree.with_version(version)));
        }
        drop(manifest);
        self.report_load();
        self.note_progress();
        Ok(())
    }

    /// Whether memtables wait to be flushed.
    pub(super) fn has_sealed(&self) -> bool {
        !self.tree().sealed.is_empty()
    }

    /// Tells the pacer what has become of the tree.
    fn report_load(&self) {
        let tree = self.tree();
        let mut load = Load { sealed: tree.sealed.len(), ..Load::default() };
        // Who compacts by hand must not wait for himself.
        if self.shared.options.compaction {
            load.l0_tables = tree.version.level(0).tables().len();
            load.debt_bytes = debt_bytes(&tree.version, &self.shared.options.picker);
        }
        self.pacer.report(load);
    }

    /// Whether it is known what the manifest on disk says.
    pub(super) fn manifest_is_sound(&self) -> bool {
        self.manifest.lock().poison().is_none()
    }

    /// Begins a new memtable. The caller holds the lock of writers, and nothing of the present one is unpublished.
    pub(super) fn seal(&self, _writer: &mut Writer, log_end: Position) {
        let _switch = self.switch.lock();
        let tree = self.tree.load();
        let active = Arc::new(tree.active.next());
        self.tree.store(Arc::new(tree.with_active(active, log_end)));
        self.report_load();
    }

    /// Everything up to `seqno` is durable.
    pub(super) fn note_durable(&self, seqno: Seqno) {
        self.durable.fetch_max(seqno.0, Ordering::AcqRel);
    }

    /// The newest write that is known to be durable.
    pub(super) fn known_durable(&self) -> Seqno {
        Seqno(self.durable.load(Ordering::Acquire))
    }

    /// Whether writes are taken.
    pub(super) fn check_alive(&self) -> Result<()> {
        self.failure.check()?;
        self.shared.failure.check()
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.failure.is_set() && !self.shared.failure.is_set()
    }

    /// Ends writes.
    pub(super) fn poison(&self, cause: &str) {
        self.failure.set(cause);
        self.note_progress();
    }

    /// Ends writes if the error of a flush or compaction says so, and passes it on.
    pub(super) fn judge(&self, error: Error) -> Error {
        let error = super::shared::name_shortage(error);
        if !changed_nothing(&error) {
            self.poison(&error.to_string());
        }
        error
    }

    /// Wakes those who wait for the tree to become lighter.
    pub(super) fn note_progress(&self) {
        // Under the lock, so that nobody looks before and waits after.
        let _trouble = self.trouble.lock();
        self.progress.notify_all();
    }

    /// Work in the background gives up soon.
    pub(super) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.note_progress();
    }

    pub(super) const fn aborted(&self) -> &AtomicBool {
        &self.aborted
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// The next look for compactions shall also find what only saves space.
    pub(super) fn want_space(&self) {
        self.wants_space.store(true, Ordering::Release);
    }
}
