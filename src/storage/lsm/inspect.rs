//! Looking into the directory of an environment that nobody has open, for operators: what is damaged, what it holds.
//!
//! Nothing is changed: no file is made, cut or removed, and what is only in the log is read from there into memory. A lock
//! is held against a process that would open the directory meanwhile; it leaves no trace.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::BlockCache;
use super::catalogue::{Catalogue, EngineId};
use super::files::{FileNumber, TableDirectory, TableFile};
use super::key::Kind;
use super::manifest;
use super::memtable::{Memtable, Moment};
use super::open_files::OpenFiles;
use super::recovery::{LOG_DIRECTORY, Logged};
use super::scan::{TreeScan, merge_of};
use super::settings::OPEN_FILES_MAX;
use super::status::{self, Totals};
use super::table::Table;
use super::tree::Tree;
use super::version::Version;
use crate::storage::{Direction, EntryRef, Error, KeyRange, Result, Scan, Seqno};
use crate::util::fs::{DirLock, FileSystem};
use crate::util::time::Timestamp;
use crate::wal::{RecordRef, Recovery, Wal};

/// What is kept of blocks that were read.
const CACHE_BYTES: usize = 8 << 20;

/// End of the names of files that were being replaced.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// End of the names of the log's segments.
const LOG_SUFFIX: &str = ".wal";

/// See the [module](self).
#[derive(Debug)]
pub struct Inspection {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    cache: Arc<BlockCache>,
    files: Arc<OpenFiles>,
    _lock: Option<DirLock>,
}

/// What [`Inspection::verify`] has found.
#[derive(Debug, Default)]
pub struct Verification {
    /// Files that were read to the end.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is damaged, with the file and the place in it.
    pub damage: Vec<Error>,
    /// What is no damage: the tail of a crash, files that the next opening removes.
    pub remarks: Vec<String>,
}

/// One engine, as far as its files tell.
#[derive(Debug)]
pub struct EngineFigures {
    /// Its name.
    pub name: String,
    /// Its newest write, and up to which one tables hold it.
    pub newest: Seqno,
    /// Up to here the log is not needed.
    pub flushed: Seqno,
    /// The clock that reads happen at.
    pub clock: Timestamp,
    /// Keys that can be read, by estimate, without reserved ones.
    pub keys: u64,
    /// Bytes of its tables.
    pub table_bytes: u64,
    /// Entries that are in the log only.
    pub log_entries: u64,
    /// The levels that have tables.
    pub levels: Vec<LevelFigures>,
    /// Sources that a read may have to ask.
    pub read_amplification: usize,
    /// Bytes of tables for each byte of the deepest level.
    pub space_amplification: f64,
}

/// One level of an engine.
#[derive(Debug)]
pub struct LevelFigures {
    /// Which.
    pub level: usize,
    /// Tables.
    pub tables: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Entries, tombstones among them.
    pub entries: u64,
    /// Tombstones, range deletions included.
    pub tombstones: u64,
    /// The least key.
    pub smallest: Vec<u8>,
    /// The greatest key, or the end of a range deletion that reaches further.
    pub largest: Vec<u8>,
}

/// An entry as it is stored: one version of a key, or a tombstone.
#[derive(Debug, Clone, Copy)]
pub struct RawEntry<'a> {
    /// The key; of a range deletion its first one.
    pub key: &'a [u8],
    /// Which write.
    pub seqno: Seqno,
    /// `put`, `delete` or `delete-range`.
    pub kind: &'static str,
    /// The value; of a range deletion the first key beyond it.
    pub value: &'a [u8],
    /// When it expires.
    pub expires_at: Option<Timestamp>,
}

impl Inspection {
    /// Takes hold of the environment in `directory`.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] while a process has it open, [`Error::Invalid`] when there is none.
    pub fn open(fs: Arc<dyn FileSystem>, directory: impl Into<PathBuf>) -> Result<Self> {
        let directory = directory.into();
        let exists = fs.exists(&directory.join(super::catalogue::FILE_NAME));
        if !exists.map_err(|error| Error::io("look into", &directory, error))? {
            let directory = directory.display();
            return Err(Error::Invalid(format!("{directory} holds no lsm environment")));
        }
        let lock = fs.lock_to_read(&directory).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => Error::Locked { path: directory.clone() },
            _ => Error::io("lock", &directory, error),
        })?;
        let files = OpenFiles::new(Arc::clone(&fs), OPEN_FILES_MAX);
        Ok(Self { fs, directory, cache: BlockCache::new(CACHE_BYTES), files, _lock: lock })
    }

    /// Reads every byte of every file and checks it.
    pub fn verify(&self) -> Verification {
        let mut found = Verification::default();
        let catalogue = found.note(self.catalogue());
        found.count(&*self.fs, &self.directory.join(super::catalogue::FILE_NAME));
        let named: BTreeSet<EngineId> =
            catalogue.iter().flat_map(|catalogue| catalogue.engines().values().copied()).collect();
        let mut ids = named.clone();
        let names = self.fs.list(&self.directory);
        let names = names.map_err(|error| Error::io("list", &self.directory, error));
        for id in found.note(names).unwrap_or_default().iter().filter_map(|n| EngineId::parse(n)) {
            if catalogue.is_none() {
                ids.insert(id);
            } else if !named.contains(&id) {
                let path = self.directory.join(id.directory_name());
                found.remark(&path, "no engine's; the next opening removes it");
            }
        }
        let mut flushed = BTreeMap::new();
        for id in ids {
            let of_engine = self.verify_engine(id, &mut found);
            flushed.insert(id, of_engine);
        }
        self.verify_log(flushed, &mut found);
        found
    }

    /// The figures of each engine.
    ///
    /// # Errors
    ///
    /// When manifests or log are damaged; [`Self::verify`] tells more.
    pub fn stats(&self) -> Result<Vec<EngineFigures>> {
        let trees = self.trees()?;
        Ok(trees.into_iter().map(|(name, tree)| figures(name, &tree)).collect())
    }

    /// Hands `visit` the name of each engine and what a read would find in it, in the order of the keys. An error of
    /// `visit` ends it.
    pub fn dump<E: From<Error>>(
        &self,
        mut visit: impl FnMut(&str, Timestamp, EntryRef<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (name, tree) in self.trees()? {
            let moment = tree.moment();
            let mut scan = TreeScan::new(&tree, moment, KeyRange::ALL, Direction::Forward, ())?;
            while let Some(entry) = scan.next()? {
                visit(&name, moment.clock, entry)?;
            }
        }
        Ok(())
    }

    /// As [`Self::dump`] with every version, tombstone and range deletion: those of a key from the newest to the oldest,
    /// then all range deletions.
    pub fn dump_raw<E: From<Error>>(
        &self,
        mut visit: impl FnMut(&str, RawEntry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (name, tree) in self.trees()? {
            let mut merge = merge_of(&tree)?;
            while let Some(entry) = merge.entry() {
                let kind = if entry.kind == Kind::Delete { "delete" } else { "put" };
                let super::key::InternalEntry { key, seqno, value, expires_at, .. } = entry;
                visit(&name, RawEntry { key, seqno, kind, value, expires_at })?;
                merge.advance()?;
            }
            let mut range = |start: &[u8], end: &[u8], seqno| {
                let kind = "delete-range";
                visit(&name, RawEntry { key: start, seqno, kind, value: end, expires_at: None })
            };
            for run in tree.memtables().flat_map(|memtable| memtable.range_deletions().to_vec()) {
                for (start, end, seqno) in &run.deletions {
                    range(start, end, *seqno)?;
                }
            }
            for (_, table) in tree.version.tables() {
                for fragment in table.table()?.range_deletions().fragments() {
                    for seqno in &fragment.seqnos {
                        range(&fragment.start, &fragment.end, *seqno)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn catalogue(&self) -> Result<Catalogue> {
        let missing = || Catalogue::damaged(&self.directory, "it is missing");
        Catalogue::open(&*self.fs, &self.directory)?.ok_or_else(missing)
    }

    fn files_of(&self, id: EngineId) -> Arc<TableDirectory> {
        let path = self.directory.join(id.directory_name());
        TableDirectory::new(Arc::clone(&self.files), path, Arc::clone(&self.cache), 0)
    }

    /// Every engine as its tables and the log make it.
    fn trees(&self) -> Result<Vec<(String, Tree)>> {
        let catalogue = self.catalogue()?;
        let mut trees = BTreeMap::new();
        for (name, &id) in catalogue.engines() {
            let version = manifest::find(&self.files_of(id))?.version;
            let flushed = version.flushed();
            let moment = Moment { seqno: flushed.seqno, clock: flushed.clock };
            let active = Arc::new(Memtable::new(moment));
            let tree = Tree { active, sealed: Vec::new(), version: Arc::new(version) };
            trees.insert(id, (name.clone(), tree));
        }
        self.read_log(|path, record| {
            let Some((_, tree)) = trees.get(&EngineId(record.owner.0)) else { return Ok(()) };
            if let Some(logged) = Logged::after(tree.seqno(), path, &record)? {
                tree.active.apply(logged.first, &logged.batch);
            }
            Ok(())
        })?;
        let mut trees: Vec<_> = trees.into_values().collect();
        trees.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(trees)
    }

    /// `None`: there is no log.
    fn read_log(
        &self,
        mut visit: impl FnMut(&Path, RecordRef<'_>) -> Result<()>,
    ) -> Result<Option<Recovery>> {
        let path = self.directory.join(LOG_DIRECTORY);
        let exists = self.fs.exists(&path).map_err(|error| Error::io("look for", &path, error))?;
        let read = || Wal::inspect::<Error>(&*self.fs, &path, |record| visit(&path, record));
        exists.then(read).transpose()
    }

    /// Up to which write the engine's tables hold it; `None` when that cannot be told.
    fn verify_engine(&self, id: EngineId, found: &mut Verification) -> Option<Seqno> {
        let files = self.files_of(id);
        let path = files.path();
        let manifest = found.note(manifest::find(&files));
        if let Some(manifest) = &manifest {
            let file = path.join(manifest.number.manifest_name());
            found.count(&*self.fs, &path.join(manifest::CURRENT));
            found.count(&*self.fs, &file);
            if manifest.torn > 0 {
                let remark = format!("torn at offset {}; the next opening clears it", manifest.end);
                found.remark(&file, &remark);
            }
        }
        let version = manifest.as_ref().map(|manifest| &manifest.version);
        let listed = self.fs.list(path).map_err(|error| Error::io("list", path, error));
        let names = found.note(listed).unwrap_or_default();
        let tables = version.into_iter().flat_map(Version::tables).map(|(_, table)| table);
        let tables: BTreeMap<_, _> = tables.map(|table| (table.number(), table)).collect();
        for (number, table) in &tables {
            if names.contains(&number.table_name()) {
                self.verify_table(&table.path(), Some(table), found);
            } else {
                let missing = Error::corruption(table.path(), 0, "the table is missing");
                found.damage.push(missing);
            }
        }
        for name in &names {
            let file = path.join(name);
            let number = FileNumber::parse(name, "sst");
            let current = manifest.as_ref().map(|manifest| manifest.number.manifest_name());
            if number.is_some_and(|number| !tables.contains_key(&number)) && version.is_none() {
                // The manifest does not say which tables there are: all of them may be needed.
                self.verify_table(&file, None, found);
            } else if number.is_some_and(|number| !tables.contains_key(&number))
                || FileNumber::parse(name, "manifest").is_some() && current.as_ref() != Some(name)
                || name.ends_with(TEMPORARY_SUFFIX)
            {
                found.remark(&file, "not in use; the next opening removes it");
            }
        }
        version.map(|version| version.flushed().seqno)
    }

    fn verify_table(&self, path: &Path, known: Option<&TableFile>, found: &mut Verification) {
        let uid = known.map(|table| table.metadata().uid);
        let Some(table) = found.note(Table::open(&*self.fs, path, &self.cache, uid)) else {
            return;
        };
        if known.is_some_and(|known| known.properties() != table.properties()) {
            let what = "this is another table than the one that the manifest names";
            found.damage.push(Error::corruption(path, 0, what));
        } else if found.note(table.verify()).is_some() {
            found.count(&*self.fs, path);
        }
    }

    fn verify_log(&self, mut newest: BTreeMap<EngineId, Option<Seqno>>, found: &mut Verification) {
        let read = self.read_log(|path, record| {
            match newest.get_mut(&EngineId(record.owner.0)) {
                Some(Some(seqno)) => {
                    if let Some(logged) = Logged::after(*seqno, path, &record)? {
                        *seqno = logged.last;
                    }
                }
                // Whether it is the next cannot be told.
                Some(None) => drop(Logged::read(path, &record)?),
                None => {}
            }
            Ok(())
        });
        let Some(Some(recovery)) = found.note(read) else { return };
        if let Some(torn) = recovery.torn {
            let remark = format!(
                "torn at offset {}, as a crash leaves it: {}; the next opening cuts it",
                torn.offset, torn.reason
            );
            found.remark(&torn.file, &remark);
        }
        let log = self.directory.join(LOG_DIRECTORY);
        let names = self.fs.list(&log).unwrap_or_default();
        for name in names.iter().filter(|name| name.ends_with(LOG_SUFFIX)) {
            found.count(&*self.fs, &log.join(name));
        }
    }
}

impl Verification {
    /// Whether nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }

    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.damage.push(error)).ok()
    }

    fn remark(&mut self, path: &Path, what: &str) {
        self.remarks.push(format!("{}: {what}", path.display()));
    }

    fn count(&mut self, fs: &dyn FileSystem, path: &Path) {
        if let Ok(size) = fs.open(path).and_then(|file| file.size()) {
            self.files += 1;
            self.bytes += size;
        }
    }
}

fn figures(name: String, tree: &Tree) -> EngineFigures {
    let Totals { keys, disk_bytes, .. } = Totals::of(tree);
    let mut levels = Vec::new();
    for (number, level) in tree.version.levels().iter().enumerate().filter(|(_, l)| !l.is_empty()) {
        let properties = || level.tables().iter().map(|table| table.properties());
        levels.push(LevelFigures {
            level: number,
            tables: level.tables().len(),
            bytes: level.size_bytes(),
            entries: properties().map(|p| p.entries).sum(),
            tombstones: properties().map(|p| p.deletions + p.range_deletions).sum(),
            smallest: properties().map(|p| &p.smallest).min().cloned().unwrap_or_default(),
            largest: properties().map(|p| &p.largest.key).max().cloned().unwrap_or_default(),
        });
    }
    EngineFigures {
        name,
        newest: tree.seqno(),
        flushed: tree.version.flushed().seqno,
        clock: tree.moment().clock,
        keys,
        table_bytes: disk_bytes,
        log_entries: tree.active.counts().entries,
        levels,
        read_amplification: status::runs(&tree.version),
        space_amplification: status::space_amplification(&tree.version).unwrap_or(1.0),
    }
}
