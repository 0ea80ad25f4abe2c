//! One engine: a tree of the store, the overlay for readers of one moment, and the write path.
//!
//! A write, step by step, under the engine's writer lock up to 4:
//! 1. its changes are computed from the tree (nothing has happened yet; any error leaves everything as it was),
//! 2. the rows as they are go into the overlay,
//! 3. the rows as they will be go into the tree, in one sled batch with the state row (a failure here poisons the
//!    environment; readers go on seeing the overlay),
//! 4. the new moment is published: readers see the batch,
//! 5. without any lock: wait for the shared sync that the durability asks for.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use sled::IVec;

use super::changes::{Changes, RECLAIM_PER_BATCH_MAX};
use super::group::Round;
use super::rows::{self, State};
use super::scan::SledScan;
use super::store::{Cover, Store};
use super::versions::Versions;
use crate::storage::dump::{self, Kind};
use crate::storage::limits::check_batch;
use crate::storage::names::NameGuard;
use crate::storage::{
    Direction, Durability, EngineStatus, EntryRef, KeyRange, Reader, Result, Scan, Seqno,
    StorageEngine, WriteBatch,
};
use crate::util::time::Timestamp;

/// What an engine and its views share.
pub(super) struct Core {
    // Constant.
    pub(super) store: Arc<Store>,
    pub(super) tree: sled::Tree,
    // Lock order: `writer`, those of the store, `versions`, `progress`.
    /// Serializes writes; holds the state as of the newest batch that was applied.
    writer: Mutex<State>,
    pub(super) versions: RwLock<Versions>,
    progress: Mutex<Progress>,
    // Last: the name is free when all else is gone.
    _name: NameGuard,
}

/// How far the engine is durable.
struct Progress {
    durable: Seqno,
    /// Newest batch that each coming sync will make durable. At most one more than syncs can overlap.
    pending: VecDeque<(Round, Seqno)>,
    /// The syncs that cover the newest batch.
    cover: Cover,
}

impl Progress {
    fn settle(&mut self, synced: Round) {
        while let Some((round, seqno)) = self.pending.front()
            && *round <= synced
        {
            self.durable = *seqno;
            self.pending.pop_front();
        }
    }

    fn add(&mut self, cover: Cover, seqno: Seqno) {
        self.cover = cover;
        match self.pending.back_mut() {
            Some((round, newest)) if *round == cover.synced() => *newest = seqno,
            _ => self.pending.push_back((cover.synced(), seqno)),
        }
    }
}

impl Core {
    /// Reads the row of an entry as of `moment`, given the overlay locked for reading.
    fn read(&self, versions: &Versions, entry_key: &IVec, moment: Seqno) -> Result<Option<IVec>> {
        if let Some(image) = versions.image(entry_key, moment) {
            return Ok(image.clone());
        }
        self.store.call("read", || self.tree.get(entry_key))
    }

    /// Hands the entry to `visit` when there is one that `clock` does not hide.
    fn visit(
        &self,
        entry_key: &IVec,
        row: Option<&IVec>,
        clock: Timestamp,
        visit: &mut dyn FnMut(EntryRef<'_>),
    ) -> Result<bool> {
        let Some(row) = row else { return Ok(false) };
        let Some(entry) = rows::decode_entry(entry_key, row) else {
            return Err(self.store.damaged("malformed entry row"));
        };
        let visible = entry.expires_at.is_none_or(|expires_at| expires_at > clock);
        if visible {
            visit(entry);
        }
        Ok(visible)
    }
}

/// An open engine.
pub(super) struct SledEngine {
    core: Arc<Core>,
}

impl SledEngine {
    /// Opens what lies in `tree`, and makes it durable: what was written before the engine was closed may not be.
    pub(super) fn open(
        store: Arc<Store>,
        tree: sled::Tree,
        name: NameGuard,
        view_bytes_max: usize,
    ) -> Result<Self> {
        let row = store.call("read", || tree.get(rows::STATE_KEY))?;
        let state = row
            .and_then(|row| State::decode(&row))
            .ok_or_else(|| store.damaged("missing or malformed state row"))?;
        let cover = store.cover();
        store.secure(cover, Durability::Sync)?;
        let progress = Progress { durable: state.seqno, pending: VecDeque::new(), cover };
        Ok(Self {
            core: Arc::new(Core {
                store,
                tree,
                writer: Mutex::new(state),
                versions: RwLock::new(Versions::new(state, view_bytes_max)),
                progress: Mutex::new(progress),
                _name: name,
            }),
        })
    }

    fn freeze(&self) -> Result<SledView> {
        let mut versions = self.core.versions.write();
        let state = versions.now();
        versions.hold(state.seqno)?;
        Ok(SledView { core: self.core.clone(), state })
    }

    /// Steps 1 to 4 of a write. Returns the new state and how many hidden entries it reclaimed.
    fn apply(&self, batch: &WriteBatch) -> Result<(State, Cover, usize)> {
        let core = &*self.core;
        let mut writer = core.writer.lock();
        let changes = Changes::of(&core.store, &core.tree, *writer, batch)?;
        let (state, reclaimed) = (changes.state(), changes.reclaimed());
        let rows = changes.rows()?;
        core.versions.write().record(state.seqno, changes.images());
        let cover = core.store.apply(&core.tree, rows)?;
        core.versions.write().publish(state);
        *writer = state;
        let mut progress = core.progress.lock();
        progress.settle(core.store.synced());
        progress.add(cover, state.seqno);
        Ok((state, cover, reclaimed))
    }
}

impl Reader for SledEngine {
    fn get_with(&self, key: &[u8], visit: &mut dyn FnMut(EntryRef<'_>)) -> Result<bool> {
        let core = &*self.core;
        let entry_key = rows::entry_key(key);
        let (row, clock) = {
            let versions = core.versions.read();
            let now = versions.now();
            (core.read(&versions, &entry_key, now.seqno)?, now.clock)
        };
        core.visit(&entry_key, row.as_ref(), clock, visit)
    }

    fn get_many(&self, keys: &[&[u8]], visit: &mut dyn FnMut(usize, EntryRef<'_>)) -> Result<()> {
        let core = &*self.core;
        let versions = core.versions.read();
        let now = versions.now();
        for (position, key) in keys.iter().enumerate() {
            let entry_key = rows::entry_key(key);
            let row = core.read(&versions, &entry_key, now.seqno)?;
            core.visit(&entry_key, row.as_ref(), now.clock, &mut |entry| visit(position, entry))?;
        }
        Ok(())
    }

    fn scan<'a>(&'a self, range: KeyRange<'_>, direction: Direction) -> Result<Box<dyn Scan + 'a>> {
        Ok(Box::new(SledScan::new(self.freeze()?, range, direction)))
    }

    fn clock(&self) -> Timestamp {
        self.core.versions.read().now().clock
    }
}

impl StorageEngine for SledEngine {
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<Seqno> {
        let store = &*self.core.store;
        check_batch(batch)?;
        store.check_writable()?;
        if batch.is_empty() {
            let seqno = self.core.versions.read().now().seqno;
            let cover = self.core.progress.lock().cover;
            store.secure(cover, durability)?;
            return Ok(seqno);
        }
        store.check_space(batch)?;
        let (state, cover, _) = self.apply(batch)?;
        store.secure(cover, durability).map_err(|error| store.after_apply(error))?;
        Ok(state.seqno)
    }

    fn may_wait(&self) -> bool {
        // Its pages come from and go to the disk whenever it sees fit.
        true
    }

    fn view(&self) -> Result<Box<dyn Reader>> {
        Ok(Box::new(self.freeze()?))
    }

    fn flush(&self) -> Result<()> {
        self.write(&WriteBatch::new(), Durability::Sync).map(|_| ())
    }

    /// sled takes no order to compact: its background thread rewrites segments of the log when they are mostly obsolete, over
    /// all trees. What can be done here is to make the hidden entries of the engine obsolete, all of them, whatever the range.
    fn compact(&self, _range: KeyRange<'_>) -> Result<()> {
        self.core.store.check_writable()?;
        while self.apply(&WriteBatch::new())?.2 == RECLAIM_PER_BATCH_MAX {}
        self.flush()
    }

    fn checkpoint(&self, directory: &Path) -> Result<()> {
        let view = self.freeze()?;
        let State { clock, seqno, bytes, .. } = view.state;
        self.core.store.check_room_for(bytes)?;
        let mut scan = SledScan::new(view, KeyRange::ALL, Direction::Forward);
        dump::write(directory, dump::Header { kind: Kind::Sled, clock, seqno }, &mut scan)
    }

    fn status(&self) -> EngineStatus {
        let versions = self.core.versions.read();
        let State { keys, bytes, .. } = versions.now();
        let figures = BTreeMap::from([
            ("open_views", figure(versions.view_count())),
            ("view_images_bytes", figure(versions.bytes())),
        ]);
        EngineStatus {
            keys,
            bytes,
            // All engines share one log file; see the environment's status.
            disk_bytes: 0,
            memory_bytes: versions.bytes() as u64,
            writable: self.core.store.check_writable().is_ok(),
            figures,
        }
    }

    fn durable(&self) -> Seqno {
        let mut progress = self.core.progress.lock();
        progress.settle(self.core.store.synced());
        progress.durable
    }

    fn next_expiry(&self) -> Option<Timestamp> {
        let after_clock = Timestamp::from_millis(self.clock().as_millis().checked_add(1)?);
        let start = rows::expiry_bound(after_clock);
        let mut expiries = self.core.tree.range(start.as_slice()..rows::BEYOND_EXPIRIES);
        // Damage that is met here is met, and reported, by the reads and writes of those entries.
        let (row_key, _) = self.core.store.next(&mut expiries).ok()??;
        rows::decode_expiry_key(&row_key).map(|(expires_at, _)| expires_at)
    }
}

/// The state of one moment, kept readable by the overlay.
pub(super) struct SledView {
    pub(super) core: Arc<Core>,
    pub(super) state: State,
}

impl Drop for SledView {
    fn drop(&mut self) {
        self.core.versions.write().release(self.state.seqno);
    }
}

impl Reader for SledView {
    fn get_with(&self, key: &[u8], visit: &mut dyn FnMut(EntryRef<'_>)) -> Result<bool> {
        let entry_key = rows::entry_key(key);
        let row = {
            let versions = self.core.versions.read();
            versions.check(self.state.seqno)?;
            self.core.read(&versions, &entry_key, self.state.seqno)?
        };
        self.core.visit(&entry_key, row.as_ref(), self.state.clock, visit)
    }

    fn get_many(&self, keys: &[&[u8]], visit: &mut dyn FnMut(usize, EntryRef<'_>)) -> Result<()> {
        for (position, key) in keys.iter().enumerate() {
            self.get_with(key, &mut |entry| visit(position, entry))?;
        }
        Ok(())
    }

    fn scan<'a>(&'a self, range: KeyRange<'_>, direction: Direction) -> Result<Box<dyn Scan + 'a>> {
        self.core.versions.write().hold(self.state.seqno)?;
        let view = Self { core: self.core.clone(), state: self.state };
        Ok(Box::new(SledScan::new(view, range, direction)))
    }

    fn clock(&self) -> Timestamp {
        self.state.clock
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for operators are exact to 2^53")]
const fn figure(number: usize) -> f64 {
    number as f64
}
