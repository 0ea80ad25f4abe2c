//! The engine that keeps everything in main memory: the reference of behaviour for the others, and what tests and caches run
//! on.
//!
//! Nothing survives the process, so every [`Durability`] means the same here. Within the process the [`MemoryEnvironment`]
//! keeps what its engines hold while they are closed, as a directory would.
//!
//! Invariants:
//! * The state of an engine lies behind one lock. A write changes it in place, so a read waits for the batch that is being
//!   applied at the moment, never for more.
//! * Views and scans own a copy of the persistent map: taking one is O(1), and later writes copy the few tree nodes that they
//!   change.
//! * Reads of single keys go by a hash index beside the map. A write that makes it grow rehashes it as a whole.

mod state;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use self::state::{Map, Row, RowKey, State};
use super::dump::{self, DumpReader, Kind};
use super::limits::check_batch;
use super::names::{NameGuard, NamesInUse};
use super::{
    Direction, Durability, EngineStatus, Entry, EntryRef, Environment, EnvironmentStatus, KeyRange,
    Reader, Result, Scan, Seqno, StorageEngine, WriteBatch,
};
use crate::util::time::Timestamp;

/// Hidden entries that one write reclaims at most, so that a batch that moves the clock far stays short.
const RECLAIM_PER_WRITE_MAX: usize = 1_000;

/// Entries that a scan takes out of the map at once. Large enough to make the search for the first one cheap.
const SCAN_CHUNK: usize = 64;

/// All memory engines of a node.
///
/// Any thread may call anything. Dropped, it forgets the engines that are not open.
#[derive(Debug, Default)]
pub struct MemoryEnvironment {
    names: NamesInUse,
    engines: Mutex<BTreeMap<String, Arc<RwLock<State>>>>,
}

impl MemoryEnvironment {
    /// An environment without engines.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Environment for MemoryEnvironment {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn open(&self, name: &str) -> Result<Arc<dyn StorageEngine>> {
        let name = self.names.claim(name)?;
        let state = self.engines.lock().entry(name.name().to_owned()).or_default().clone();
        Ok(Arc::new(MemoryEngine { state, name: Arc::new(name) }))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let name = self.names.claim(name)?;
        self.engines.lock().remove(name.name());
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>> {
        Ok(self.engines.lock().keys().cloned().collect())
    }

    fn install(&self, name: &str, checkpoint: &Path) -> Result<()> {
        let name = self.names.claim(name)?;
        let mut reader = DumpReader::open(checkpoint, Kind::Memory)?;
        let header = reader.header();
        let mut state = State::at(header.clock, header.seqno);
        while let Some(entry) = reader.next()? {
            state.put(entry.key, entry.value, entry.expires_at);
        }
        self.engines.lock().insert(name.name().to_owned(), Arc::new(RwLock::new(state)));
        Ok(())
    }

    fn status(&self) -> EnvironmentStatus {
        let memory_bytes = self.engines.lock().values().map(|s| s.read().memory_bytes()).sum();
        EnvironmentStatus { memory_bytes, writable: true, ..EnvironmentStatus::default() }
    }
}

struct MemoryEngine {
    state: Arc<RwLock<State>>,
    /// In use as long as the engine or one of its views lives.
    name: Arc<NameGuard>,
}

impl MemoryEngine {
    fn freeze(&self) -> MemoryView {
        self.freeze_with_seqno().0
    }

    fn freeze_with_seqno(&self) -> (MemoryView, Seqno) {
        let state = self.state.read();
        let name = Arc::clone(&self.name);
        (MemoryView { map: state.map().clone(), clock: state.clock(), name }, state.seqno())
    }
}

impl Reader for MemoryEngine {
    fn get_with(&self, key: &[u8], visit: &mut dyn FnMut(EntryRef<'_>)) -> Result<bool> {
        let state = self.state.read();
        Ok(state.get(key).map(|row| visit(row.as_entry(key))).is_some())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Entry>> {
        let state = self.state.read();
        Ok(state.get(key).map(Row::to_entry))
    }

    fn get_many(&self, keys: &[&[u8]], visit: &mut dyn FnMut(usize, EntryRef<'_>)) -> Result<()> {
        let state = self.state.read();
        for (position, key) in keys.iter().enumerate() {
            if let Some(row) = state.get(key) {
                visit(position, row.as_entry(key));
            }
        }
        Ok(())
    }

    fn scan<'a>(&'a self, range: KeyRange<'_>, direction: Direction) -> Result<Box<dyn Scan + 'a>> {
        Ok(Box::new(MemoryScan::new(self.freeze(), range, direction)))
    }

    fn clock(&self) -> Timestamp {
        self.state.read().clock()
    }
}

impl StorageEngine for MemoryEngine {
    fn write(&self, batch: &WriteBatch, _durability: Durability) -> Result<Seqno> {
        check_batch(batch)?;
        if batch.is_empty() {
            return Ok(self.state.read().seqno());
        }
        let mut state = self.state.write();
        let seqno = state.apply(batch);
        state.reclaim(RECLAIM_PER_WRITE_MAX);
        Ok(seqno)
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn view(&self) -> Result<Box<dyn Reader>> {
        Ok(Box::new(self.freeze()))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn compact(&self, _range: KeyRange<'_>) -> Result<()> {
        // Deleted and overwritten entries are gone at once; only hidden ones take space. The lock is given back in between.
        while self.state.write().reclaim(RECLAIM_PER_WRITE_MAX) == RECLAIM_PER_WRITE_MAX {}
        Ok(())
    }

    fn checkpoint(&self, directory: &Path) -> Result<()> {
        let (view, seqno) = self.freeze_with_seqno();
        let header = dump::Header { kind: Kind::Memory, clock: view.clock, seqno };
        let mut scan = MemoryScan::new(view, KeyRange::ALL, Direction::Forward);
        dump::write(directory, header, &mut scan)
    }

    fn status(&self) -> EngineStatus {
        let state = self.state.read();
        EngineStatus {
            keys: state.keys(),
            bytes: state.bytes(),
            disk_bytes: 0,
            memory_bytes: state.memory_bytes(),
            writable: true,
            figures: BTreeMap::new(),
        }
    }

    fn durable(&self) -> Seqno {
        self.state.read().seqno()
    }

    fn next_expiry(&self) -> Option<Timestamp> {
        self.state.read().next_expiry()
    }
}

/// The state of one moment.
struct MemoryView {
    map: Map,
    clock: Timestamp,
    name: Arc<NameGuard>,
}

impl Reader for MemoryView {
    fn get_with(&self, key: &[u8], visit: &mut dyn FnMut(EntryRef<'_>)) -> Result<bool> {
        Ok(visit_visible(&self.map, self.clock, key, visit))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Entry>> {
        Ok(visible(&self.map, self.clock, key).map(Row::to_entry))
    }

    fn get_many(&self, keys: &[&[u8]], visit: &mut dyn FnMut(usize, EntryRef<'_>)) -> Result<()> {
        for (position, key) in keys.iter().enumerate() {
            visit_visible(&self.map, self.clock, key, &mut |entry| visit(position, entry));
        }
        Ok(())
    }

    fn scan<'a>(&'a self, range: KeyRange<'_>, direction: Direction) -> Result<Box<dyn Scan + 'a>> {
        let name = Arc::clone(&self.name);
        let view = Self { map: self.map.clone(), clock: self.clock, name };
        Ok(Box::new(MemoryScan::new(view, range, direction)))
    }

    fn clock(&self) -> Timestamp {
        self.clock
    }
}

fn visible<'a>(map: &'a Map, clock: Timestamp, key: &[u8]) -> Option<&'a Row> {
    map.get(key).filter(|row| row.is_visible(clock))
}

fn visit_visible(
    map: &Map,
    clock: Timestamp,
    key: &[u8],
    visit: &mut dyn FnMut(EntryRef<'_>),
) -> bool {
    let Some(row) = visible(map, clock, key) else { return false };
    visit(row.as_entry(key));
    true
}

/// Takes entries out of a view in chunks, narrowing the range behind it.
struct MemoryScan {
    view: MemoryView,
    start: Bytes,
    end: Option<Bytes>,
    direction: Direction,
    chunk: VecDeque<(RowKey, Row)>,
    current: Option<(RowKey, Row)>,
    exhausted: bool,
}

impl MemoryScan {
    fn new(view: MemoryView, range: KeyRange<'_>, direction: Direction) -> Self {
        Self {
            view,
            start: Bytes::copy_from_slice(range.start),
            end: range.end.map(Bytes::copy_from_slice),
            direction,
            chunk: VecDeque::new(),
            current: None,
            exhausted: range.is_empty(),
        }
    }

    /// Fills the chunk with the next visible entries. One pass looks at a bounded number of entries, hidden ones included.
    fn fill(&mut self) {
        let range = state::range(&self.view.map, &self.start, self.end.as_deref());
        let mut last = None;
        let mut seen = 0;
        let mut take = |(key, row): (&RowKey, &Row)| {
            seen += 1;
            last = Some(key.clone());
            if row.is_visible(self.view.clock) {
                self.chunk.push_back((key.clone(), row.clone()));
            }
        };
        match self.direction {
            Direction::Forward => range.take(SCAN_CHUNK).for_each(&mut take),
            Direction::Reverse => range.rev().take(SCAN_CHUNK).for_each(&mut take),
        }
        self.exhausted = seen < SCAN_CHUNK;
        match (last, self.direction) {
            (None, _) => {}
            (Some(last), Direction::Forward) => self.start = successor(&last),
            (Some(last), Direction::Reverse) => self.end = Some(Bytes::copy_from_slice(&last)),
        }
    }
}

impl Scan for MemoryScan {
    fn next(&mut self) -> Result<Option<EntryRef<'_>>> {
        while self.chunk.is_empty() && !self.exhausted {
            self.fill();
        }
        self.current = self.chunk.pop_front();
        Ok(self.current.as_ref().map(|(key, row)| row.as_entry(key)))
    }
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}
