//! All engines of a node: one directory, one log, one cache, one set of threads; and the handles that callers have.
//!
//! | in the directory | |
//! |---|---|
//! | `LOCK` | held by the process |
//! | `catalogue` | which engines there are |
//! | `wal/` | the log of all engines, if there is one |
//! | `engine-N/` | manifest and tables of engine N |
//!
//! All engines that the catalogue names are in memory as long as the environment is open, whether anybody has a handle or
//! not: what they hold in memtables is in the log only, and that is replayed once. Removing and installing switch the
//! catalogue, which is one step, and erase afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::catalogue::{Catalogue, EngineId};
use super::checkpoint;
use super::engine::Engine;
use super::manifest::Manifest;
use super::memtable::Moment;
use super::recovery::{engine_directory, erase, open_catalogue, open_engines};
use super::scan::TreeScan;
use super::settings::LsmOptions;
use super::shared::{Shared, changed_nothing, create_directory, name_shortage, sync_directory};
use super::tree::Tree;
use super::version::{Version, VersionEdit};
use super::{read, status, worker};
use crate::storage::names::{NameGuard, NamesInUse};
use crate::storage::{
    Direction, Durability, EngineStatus, EntryRef, Environment, EnvironmentStatus, Error, KeyRange,
    Reader, Result, Scan, Seqno, StorageEngine, WriteBatch,
};
use crate::util::fs::{DirLock, FileSystem};
use crate::util::time::Timestamp;

/// See the [module](self).
#[derive(Debug)]
pub struct LsmEnvironment {
    node: Arc<Node>,
}

/// What lives as long as the environment or any handle of an engine.
#[derive(Debug)]
struct Node {
    shared: Arc<Shared>,
    names: NamesInUse,
    catalogue: Mutex<Catalogue>,
    threads: Vec<JoinHandle<()>>,
    // Let go last.
    _lock: DirLock,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.queue.stop(std::mem::take(&mut self.threads));
        // Nobody else has it by now. What fails here was promised to nobody.
        if let Some(shared) = Arc::get_mut(&mut self.shared)
            && let Some(log) = shared.log.take()
        {
            let _ = log.close();
        }
    }
}

impl LsmEnvironment {
    /// Opens the environment in `directory`, or makes an empty one.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        directory: impl Into<PathBuf>,
        options: LsmOptions,
    ) -> Result<Self> {
        let directory = directory.into();
        let failed = |operation, error| name_shortage(Error::io(operation, &directory, error));
        create_directory(&*fs, &directory)?;
        let lock = fs.lock(&directory).map_err(|error| {
            if error.kind() == std::io::ErrorKind::WouldBlock {
                return Error::Locked { path: directory.clone() };
            }
            failed("lock", error)
        })?;
        let shared = Arc::new(Shared::new(fs, directory, options));
        let catalogue = open_catalogue(&shared)?;
        let mut node = Node {
            names: NamesInUse::default(),
            catalogue: Mutex::new(catalogue),
            threads: Vec::new(),
            _lock: lock,
            shared,
        };
        open_engines(&node.shared, node.catalogue.get_mut())?;
        let threads = worker::spawn(&node.shared);
        let directory = &node.shared.directory;
        node.threads = threads.map_err(|error| Error::io("start of threads", directory, error))?;
        for engine in node.shared.queue.engines() {
            node.shared.queue.compaction_due(engine.id());
        }
        Ok(Self { node: Arc::new(node) })
    }

    /// All engines look for what only saves space as soon as nothing is more urgent, as they do each
    /// [`compaction_interval`](LsmOptions::compaction_interval) where there are threads.
    pub fn save_space(&self) {
        self.node.shared.queue.space_due();
    }

    /// Does one job of the background on this thread; false when there was none. For environments without threads.
    pub fn drive(&self) -> bool {
        let log = self.node.shared.log();
        let driven = log.is_some_and(crate::wal::Wal::drive);
        let maintained = log.map(crate::wal::Wal::maintain);
        // Who needs the outcome finds it in the next append.
        drop(maintained);
        self.node.shared.queue.drive() || driven
    }
}

impl Node {
    /// The engine `name`, which the caller has claimed.
    fn engine(&self, name: &str) -> Result<Arc<Engine>> {
        let mut catalogue = self.catalogue.lock();
        if let Some(&id) = catalogue.engines().get(name) {
            return self
                .shared
                .queue
                .engine(id)
                .ok_or_else(|| Error::Invalid(format!("engine {name:?} is being removed")));
        }
        self.shared.failure.check()?;
        self.shared.check_room()?;
        let empty = VersionEdit::default();
        self.add_engine(&mut catalogue, name, &empty, |_| Ok(()))
    }

    /// Makes a new engine with the given tree, and `name` its name, durably. `fill` puts the tables there.
    fn add_engine(
        &self,
        catalogue: &mut Catalogue,
        name: &str,
        tree: &VersionEdit,
        fill: impl FnOnce(&super::files::TableDirectory) -> Result<()>,
    ) -> Result<Arc<Engine>> {
        let mut next = catalogue.clone();
        let id = next.add(name);
        let directory = engine_directory(&self.shared, id);
        let made = self.make_engine(id, &directory, tree, fill);
        let engine = match made {
            Ok(engine) => engine,
            Err(error) => {
                // The catalogue does not name it; what cannot be erased now is erased by the next opening.
                let _ = erase(&*self.shared.fs, directory.path());
                return Err(name_shortage(error));
            }
        };
        self.store(catalogue, next)?;
        self.shared.queue.add(&engine);
        Ok(engine)
    }

    fn make_engine(
        &self,
        id: EngineId,
        directory: &Arc<super::files::TableDirectory>,
        tree: &VersionEdit,
        fill: impl FnOnce(&super::files::TableDirectory) -> Result<()>,
    ) -> Result<Arc<Engine>> {
        let (fs, path) = (&*self.shared.fs, directory.path());
        // A failed attempt may have left something under this number.
        erase(fs, path)?;
        fs.create_dir_all(path).map_err(|error| Error::io("create", path, error))?;
        fill(directory)?;
        let (version, _) = Version::default().apply(tree, directory).map_err(Error::Invalid)?;
        let manifest = Manifest::create(directory, &version)?;
        sync_directory(fs, &self.shared.directory)?;
        Ok(Engine::new(id, Arc::clone(&self.shared), Arc::clone(directory), manifest))
    }

    /// Makes `next` the catalogue. When that fails and it may have happened all the same, nobody knows what the next
    /// opening will find: no more writes then.
    fn store(&self, catalogue: &mut Catalogue, next: Catalogue) -> Result<()> {
        if let Err(error) = next.store(&*self.shared.fs, &self.shared.directory) {
            if !changed_nothing(&error) {
                self.shared.failure.set(&error.to_string());
            }
            return Err(error);
        }
        *catalogue = next;
        Ok(())
    }

    /// Ends an engine that the catalogue names no more.
    fn retire(&self, id: EngineId) -> Result<()> {
        let engine = self.shared.queue.engine(id);
        self.shared.queue.retire(id);
        if let (Some(engine), Some(log)) = (engine, self.shared.log()) {
            log.release_all(engine.owner());
        }
        erase(&*self.shared.fs, &self.shared.directory.join(id.directory_name()))
    }
}

impl Environment for LsmEnvironment {
    fn kind(&self) -> &'static str {
        "lsm"
    }

    fn open(&self, name: &str) -> Result<Arc<dyn StorageEngine>> {
        let name = self.node.names.claim(name)?;
        let engine = self.node.engine(name.name())?;
        let open = Open { _name: name, _node: Arc::clone(&self.node) };
        Ok(Arc::new(LsmEngine { engine, open: Arc::new(open) }))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let name = self.node.names.claim(name)?;
        let mut catalogue = self.node.catalogue.lock();
        let mut next = catalogue.clone();
        let Some(id) = next.remove(name.name()) else { return Ok(()) };
        self.node.shared.failure.check()?;
        self.node.store(&mut catalogue, next)?;
        drop(catalogue);
        self.node.retire(id)
    }

    fn list(&self) -> Result<Vec<String>> {
        Ok(self.node.catalogue.lock().engines().keys().cloned().collect())
    }

    fn install(&self, name: &str, copy: &Path) -> Result<()> {
        let name = self.node.names.claim(name)?;
        let shared = &self.node.shared;
        let tree = checkpoint::read(&shared.fs, copy)?;
        let mut catalogue = self.node.catalogue.lock();
        shared.failure.check()?;
        shared.check_room()?;
        let old = catalogue.engines().get(name.name()).copied();
        self.node.add_engine(&mut catalogue, name.name(), &tree, |directory| {
            checkpoint::link_tables(&*shared.fs, copy, &tree, directory)
        })?;
        drop(catalogue);
        old.map_or(Ok(()), |old| self.node.retire(old))
    }

    fn status(&self) -> EnvironmentStatus {
        status::of_environment(&self.node.shared)
    }
}

/// Keeps a name in use and the environment open. In this order: when the name is free, the engine can be opened again.
struct Open {
    _name: NameGuard,
    _node: Arc<Node>,
}

/// A handle of an engine.
struct LsmEngine {
    // Before what keeps the environment open.
    engine: Arc<Engine>,
    open: Arc<Open>,
}

impl Reader for LsmEngine {
    fn get_with(&self, key: &[u8], visit: &mut dyn FnMut(EntryRef<'_>)) -> Result<bool> {
        let (tree, moment) = self.engine.pin();
        read::get(&tree, moment, key, visit)
    }

    fn get_many(&self, keys: &[&[u8]], visit: &mut dyn FnMut(usize, EntryRef<'_>)) -> Result<()> {
        let (tree, moment) = self.engine.pin();
        get_many(&tree, moment, keys, visit)
    }

    fn scan<'a>(&'a self, range: KeyRange<'_>, direction: Direction) -> Result<Box<dyn Scan + 'a>> {
        let (tree, moment) = self.engine.pin_owned();
        Ok(Box::new(TreeScan::new(&tree, moment, range, direction, Arc::clone(&self.open))?))
    }

    fn clock(&self) -> Timestamp {
        self.engine.pin().1.clock
    }
}

impl StorageEngine for LsmEngine {
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<Seqno> {
        self.engine.write(batch, durability)
    }

    fn may_wait(&self) -> bool {
        self.engine.may_wait()
    }

    fn view(&self) -> Result<Box<dyn Reader>> {
        let (tree, moment) = self.engine.pin_owned();
        Ok(Box::new(LsmView { tree, moment, open: Arc::clone(&self.open) }))
    }

    fn flush(&self) -> Result<()> {
        self.engine.flush()
    }

    fn compact(&self, range: KeyRange<'_>) -> Result<()> {
        self.engine.compact(range)
    }

    fn checkpoint(&self, directory: &Path) -> Result<()> {
        self.engine.flush()?;
        let tree = self.engine.tree_owned();
        checkpoint::write(&*self.engine.shared.fs, directory, &self.engine.directory, &tree.version)
    }

    fn status(&self) -> EngineStatus {
        self.engine.status()
    }

    fn durable(&self) -> Seqno {
        self.engine.durable()
    }

    fn next_expiry(&self) -> Option<Timestamp> {
        self.engine.next_expiry()
    }
}

/// The state of one moment: a tree of its own.
struct LsmView {
    tree: Arc<Tree>,
    moment: Moment,
    open: Arc<Open>,
}

impl Reader for LsmView {
    fn get_with(&self, key: &[u8], visit: &mut dyn FnMut(EntryRef<'_>)) -> Result<bool> {
        read::get(&self.tree, self.moment, key, visit)
    }

    fn get_many(&self, keys: &[&[u8]], visit: &mut dyn FnMut(usize, EntryRef<'_>)) -> Result<()> {
        get_many(&self.tree, self.moment, keys, visit)
    }

    fn scan<'a>(&'a self, range: KeyRange<'_>, direction: Direction) -> Result<Box<dyn Scan + 'a>> {
        let open = Arc::clone(&self.open);
        Ok(Box::new(TreeScan::new(&self.tree, self.moment, range, direction, open)?))
    }

    fn clock(&self) -> Timestamp {
        self.moment.clock
    }
}

fn get_many(
    tree: &Tree,
    moment: Moment,
    keys: &[&[u8]],
    visit: &mut dyn FnMut(usize, EntryRef<'_>),
) -> Result<()> {
    for (position, key) in keys.iter().enumerate() {
        read::get(tree, moment, key, &mut |entry| visit(position, entry))?;
    }
    Ok(())
}
