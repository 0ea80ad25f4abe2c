//! Opening an environment: what the catalogue, the manifests and the log say, in this order.
//!
//! 1. The directory is locked and the catalogue read and its name synced, or made when there is nothing at all.
//! 2. Each manifest is opened: the tree as of the last edit, and up to which write it holds everything.
//! 3. The log is replayed into memtables. Records that are in tables are skipped; of the others, each must follow the one
//!    before it without a gap. A memtable that is full, and the largest when all together are over the budget, is flushed
//!    before replay goes on.
//! 4. The log makes durable what it has replayed, and states durably where it ended, before it takes a new record
//!    (`wal/recovery.rs`). So what was replayed may stay in memtables: a second crash finds the same records again.
//! 5. Engines release what tables hold; owners that are no engines any more release everything.
//! 6. What a crash has left behind goes: files that a manifest does not name, and directories of engines that the catalogue
//!    does not name (a creation, a removal or an installation was cut short).
//!
//! Nothing is erased before the log has been replayed: a manifest or a catalogue that is an older copy of itself shows by
//! writes that are missing between it and the log, or by writes of an engine that it does not know yet. An older copy that
//! fits the log cannot be told from the right one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::catalogue::{Catalogue, EngineId};
use super::engine::Engine;
use super::files::TableDirectory;
use super::key::SEQNO_MAX;
use super::manifest::Manifest;
use super::shared::{KIND_BATCH, Shared, sync_directory};
use crate::storage::{Error, Result, Seqno, WriteBatch};
use crate::util::fs::FileSystem;
use crate::wal::{RecordRef, Wal};

/// Name of the directory of the log.
pub(super) const LOG_DIRECTORY: &str = "wal";

/// Replay looks at the budget of memtables so many times until the log alone has filled it.
const BUDGET_LOOKS: usize = 64;

type Engines = BTreeMap<EngineId, Arc<Engine>>;

/// Step 1, after the locking.
pub(super) fn open_catalogue(shared: &Shared) -> Result<Catalogue> {
    let (fs, directory) = (&*shared.fs, &shared.directory);
    if let Some(catalogue) = Catalogue::open(fs, directory)? {
        // A killed process may have left its name in the page cache only. What is written to its engines from here on, and what is erased
        // because it does not name it, must not meet the catalogue before it after a power loss.
        sync_directory(fs, directory)?;
        return Ok(catalogue);
    }
    // It is made before all else: without it there can be nothing.
    let names = fs.list(directory).map_err(|error| Error::io("list", directory, error))?;
    let ours = |name: &&String| *name == LOG_DIRECTORY || EngineId::parse(name).is_some();
    if let Some(name) = names.iter().find(ours) {
        return Err(Catalogue::damaged(directory, &format!("it is missing, but there is {name}")));
    }
    let catalogue = Catalogue::default();
    catalogue.store(fs, directory)?;
    Ok(catalogue)
}

/// Step 6.
fn erase_strays(shared: &Shared, catalogue: &Catalogue) -> Result<()> {
    let (fs, directory) = (&*shared.fs, &shared.directory);
    let names = fs.list(directory).map_err(|error| Error::io("list", directory, error))?;
    let mut erased = false;
    for name in names {
        let Some(id) = EngineId::parse(&name) else { continue };
        if !catalogue.engines().values().any(|engine| *engine == id) {
            erase(fs, &directory.join(name))?;
            erased = true;
        }
    }
    if erased {
        fs.sync_dir(directory).map_err(|error| Error::io("sync", directory, error))?;
    }
    Ok(())
}

/// Steps 2 to 6.
pub(super) fn open_engines(shared: &Arc<Shared>, catalogue: &Catalogue) -> Result<()> {
    let mut engines = Engines::new();
    for &id in catalogue.engines().values() {
        engines.insert(id, open_engine(shared, id)?);
    }
    let path = shared.directory.join(LOG_DIRECTORY);
    let exists = || shared.fs.exists(&path).map_err(|error| Error::io("look for", &path, error));
    if shared.options.log || exists()? {
        let log = replay(shared, &path, catalogue, &engines)?;
        if shared.options.log {
            shared.log.set(log).expect("the log is opened once");
        } else {
            // It was in use once: nothing of it may be lost, and nothing is needed twice.
            for engine in engines.values() {
                engine.flush()?;
                log.release_all(engine.owner());
            }
            log.close()?;
        }
    }
    for engine in engines.values() {
        engine.directory.remove_orphans()?;
        shared.queue.add(engine);
    }
    erase_strays(shared, catalogue)
}

fn open_engine(shared: &Arc<Shared>, id: EngineId) -> Result<Arc<Engine>> {
    let directory = engine_directory(shared, id);
    let manifest = Manifest::open(&directory)?;
    Ok(Engine::new(id, Arc::clone(shared), directory, manifest))
}

/// The directory of an engine, with a seed of its own.
pub(super) fn engine_directory(shared: &Shared, id: EngineId) -> Arc<TableDirectory> {
    let path = shared.directory.join(id.directory_name());
    TableDirectory::new(Arc::clone(&shared.files), path, Arc::clone(&shared.cache), shared.seed())
}

fn replay(shared: &Shared, path: &Path, catalogue: &Catalogue, engines: &Engines) -> Result<Wal> {
    let options = shared.options.log_options();
    let fs = Arc::clone(&shared.fs);
    let budget = shared.options.memtables_bytes_max;
    // Bytes since the last look at the budget: to ask all engines after each record would take longer than the rest.
    let mut unchecked = 0;
    let visit = |record: RecordRef<'_>| {
        let id = EngineId(record.owner.0);
        let Some(engine) = engines.get(&id) else {
            if catalogue.knew(id) {
                return Ok(());
            }
            let why = format!("it is an older one: the log has writes of engine {}", id.0);
            return Err(Catalogue::damaged(&shared.directory, &why));
        };
        engine.replay(path, &record)?;
        unchecked += record.body.len();
        if unchecked < budget / BUDGET_LOOKS {
            return Ok(());
        }
        unchecked = 0;
        let bytes = |engine: &Arc<Engine>| engine.tree().memtable_bytes();
        if engines.values().map(bytes).sum::<usize>() > budget
            && let Some(largest) = engines.values().max_by_key(|engine| bytes(engine))
        {
            largest.flush_for_replay(&record)?;
        }
        Ok(())
    };
    let (log, recovery) = Wal::open::<Error>(fs, path, options, visit)?;
    for owner in recovery.owners {
        match engines.get(&EngineId(owner.owner.0)) {
            None => log.release_all(owner.owner),
            Some(engine) => {
                log.release(owner.owner, engine.tree().version.flushed().log);
                // All of it was made durable by the opening.
                engine.note_durable(engine.tree().seqno());
            }
        }
    }
    Ok(log)
}

impl Engine {
    /// Step 3, for one record.
    fn replay(&self, path: &Path, record: &RecordRef<'_>) -> Result<()> {
        let newest = self.writer.lock().last;
        let Some(Logged { first, last, batch }) = Logged::after(newest, path, record)? else {
            return Ok(());
        };
        if self.tree().active.used_bytes() >= self.shared.options.memtable_bytes {
            self.flush_for_replay_before(record)?;
        }
        self.tree().active.apply(first, &batch);
        self.writer.lock().last = last;
        Ok(())
    }

    /// Flushes what was replayed, `record` included.
    fn flush_for_replay(&self, record: &RecordRef<'_>) -> Result<()> {
        // The place of the record itself: one record more than needed is kept, and skipped the next time.
        self.flush_for_replay_before(record)
    }

    /// Flushes what was replayed, at most up to `record`.
    fn flush_for_replay_before(&self, record: &RecordRef<'_>) -> Result<()> {
        // There may be no room but theirs, and the records that were replayed fit the manifest.
        self.directory.remove_orphans()?;
        self.seal(&mut self.writer.lock(), record.position);
        self.flush_sealed()
    }
}

/// A batch as it was logged.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) first: Seqno,
    pub(super) last: Seqno,
    pub(super) batch: WriteBatch,
}

impl Logged {
    /// Reads `record` of the log in `path`, whose engine has everything up to `newest`; `None`: that one as well.
    /// [`Error::Corruption`] when it is none, or not the next.
    pub(super) fn after(
        newest: Seqno,
        path: &Path,
        record: &RecordRef<'_>,
    ) -> Result<Option<Self>> {
        let logged = Self::read(path, record)?;
        if logged.last <= newest {
            return Ok(None);
        }
        if logged.first.0 != newest.0 + 1 {
            let (first, engine, after) = (logged.first.0, record.owner.0, newest.0);
            let detail = format!(
                "write {first} of engine {engine} follows write {after}: those between are missing"
            );
            return Err(damaged(path, record, detail));
        }
        Ok(Some(logged))
    }

    /// Reads `record` of the log in `path`. [`Error::Corruption`] when it is none.
    pub(super) fn read(path: &Path, record: &RecordRef<'_>) -> Result<Self> {
        let damaged = |detail: String| damaged(path, record, detail);
        if record.kind != KIND_BATCH {
            return Err(damaged(format!("an engine's record of unknown kind {}", record.kind.0)));
        }
        let (first, batch) = decode(record.body)
            .ok_or_else(|| damaged("the record of a batch is malformed".to_owned()))?;
        let last = Seqno(first.0 + batch.len().max(1) as u64 - 1);
        Ok(Self { first, last, batch })
    }
}

fn damaged(log: &Path, record: &RecordRef<'_>, detail: String) -> Error {
    let position = record.position;
    Error::corruption(position.file_in(log), position.offset(), detail)
}

pub(super) fn decode(body: &[u8]) -> Option<(Seqno, WriteBatch)> {
    let (first, batch) = body.split_first_chunk::<8>()?;
    let first = u64::from_le_bytes(*first);
    let batch = WriteBatch::decode(batch)?;
    let last = first.checked_add(batch.len() as u64)?;
    if first == 0 || last > SEQNO_MAX.0 {
        return None;
    }
    Some((Seqno(first), batch))
}

/// Removes a directory of files, the directory included.
pub(super) fn erase(fs: &dyn FileSystem, directory: &Path) -> Result<()> {
    let names = match fs.list(directory) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("list", directory, error)),
    };
    for name in names {
        let path = directory.join(name);
        fs.remove(&path).map_err(|error| Error::io("remove", &path, error))?;
    }
    fs.remove_dir(directory).map_err(|error| Error::io("remove", directory, error))
}
