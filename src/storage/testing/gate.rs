//! An engine whose syncs wait when they are told to, and fail when they are told to: for tests of those who write through one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::storage::{
    Direction, Durability, EngineStatus, Entry, EntryRef, Error, KeyRange, Reader, Result, Scan,
    Seqno, StorageEngine, WriteBatch,
};
use crate::util::time::Timestamp;

/// How long a test waits for something that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Passes everything on to an engine, and counts.
pub(crate) struct Gate {
    engine: Arc<dyn StorageEngine>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    held: bool,
    waiting: usize,
    failing_sync: Option<Error>,
    failing_write: Option<Error>,
    refused_write: Option<Error>,
    poisoned: Option<String>,
    /// Number of operations of each batch that was applied, and its durability.
    batches: Vec<(usize, Durability)>,
    syncs: usize,
}

impl Gate {
    pub(crate) fn new(engine: Arc<dyn StorageEngine>) -> Arc<Self> {
        Arc::new(Self { engine, state: Mutex::default(), changed: Condvar::new() })
    }

    /// From now on syncs wait.
    pub(crate) fn hold(&self) {
        self.state.lock().held = true;
    }

    /// Lets syncs go on.
    pub(crate) fn release(&self) {
        self.state.lock().held = false;
        self.changed.notify_all();
    }

    /// Waits until a sync waits.
    pub(crate) fn wait_for_sync(&self) {
        let mut state = self.state.lock();
        let deadline = Instant::now() + DEADLINE;
        while state.waiting == 0 {
            let late = self.changed.wait_until(&mut state, deadline).timed_out();
            assert!(!late, "no sync began in {DEADLINE:?}");
        }
    }

    /// The next sync fails with `error` and poisons the engine.
    pub(crate) fn fail_sync(&self, error: Error) {
        self.state.lock().failing_sync = Some(error);
    }

    /// The next batch fails with `error` after it was applied, and poisons the engine.
    pub(crate) fn fail_write(&self, error: Error) {
        self.state.lock().failing_write = Some(error);
    }

    /// The next batch is refused with `error`.
    pub(crate) fn refuse_write(&self, error: Error) {
        self.state.lock().refused_write = Some(error);
    }

    /// Number of operations and durability of each batch that was applied.
    pub(crate) fn batches(&self) -> Vec<(usize, Durability)> {
        self.state.lock().batches.clone()
    }

    /// How many syncs succeeded.
    pub(crate) fn syncs(&self) -> usize {
        self.state.lock().syncs
    }

    /// An error as a failed disk gives it.
    pub(crate) fn broken_disk() -> Error {
        Error::io("sync", "disk", std::io::Error::other("broken"))
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.held {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
        drop(state);
        self.fail(|state| &mut state.failing_sync)?;
        self.state.lock().syncs += 1;
        Ok(())
    }

    /// Fails and poisons, when it was told to.
    fn fail(&self, failure: impl Fn(&mut State) -> &mut Option<Error>) -> Result<()> {
        let mut state = self.state.lock();
        let Some(error) = failure(&mut state).take() else { return Ok(()) };
        state.poisoned = Some(error.to_string());
        Err(error)
    }
}

impl Reader for Gate {
    fn get_with(&self, key: &[u8], visit: &mut dyn FnMut(EntryRef<'_>)) -> Result<bool> {
        self.engine.get_with(key, visit)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Entry>> {
        self.engine.get(key)
    }

    fn get_many(&self, keys: &[&[u8]], visit: &mut dyn FnMut(usize, EntryRef<'_>)) -> Result<()> {
        self.engine.get_many(keys, visit)
    }

    fn scan<'a>(&'a self, range: KeyRange<'_>, direction: Direction) -> Result<Box<dyn Scan + 'a>> {
        self.engine.scan(range, direction)
    }

    fn clock(&self) -> Timestamp {
        self.engine.clock()
    }
}

impl StorageEngine for Gate {
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<Seqno> {
        {
            let mut state = self.state.lock();
            if let Some(cause) = &state.poisoned {
                return Err(Error::Poisoned { cause: cause.clone() });
            }
            if !batch.is_empty() {
                if let Some(error) = state.refused_write.take() {
                    return Err(error);
                }
                state.batches.push((batch.len(), durability));
            }
        }
        let seqno = self.engine.write(batch, durability)?;
        if !batch.is_empty() {
            self.fail(|state| &mut state.failing_write)?;
        }
        if durability == Durability::Sync {
            self.sync()?;
        }
        Ok(seqno)
    }

    fn may_wait(&self) -> bool {
        self.engine.may_wait()
    }

    fn view(&self) -> Result<Box<dyn Reader>> {
        self.engine.view()
    }

    fn flush(&self) -> Result<()> {
        self.engine.flush()
    }

    fn compact(&self, range: KeyRange<'_>) -> Result<()> {
        self.engine.compact(range)
    }

    fn checkpoint(&self, directory: &Path) -> Result<()> {
        self.engine.checkpoint(directory)
    }

    fn status(&self) -> EngineStatus {
        let writable = self.state.lock().poisoned.is_none();
        EngineStatus { writable, ..self.engine.status() }
    }

    fn durable(&self) -> Seqno {
        self.engine.durable()
    }

    fn next_expiry(&self) -> Option<Timestamp> {
        self.engine.next_expiry()
    }
}
