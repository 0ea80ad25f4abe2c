//! The table files of one engine: their names, their numbers, who opens them and who removes them.
//!
//! A [`TableFile`] is a table as the manifest knows it: a number and what was written. It is opened when it is first
//! read, so that opening an engine does not open all its tables, and its handle may be closed and opened again at any
//! time ([`OpenFiles`]): whoever reads a table keeps its [`TableFile`]. A file lives as long as any
//! [`Version`](super::version::Version) that names it: when the last one goes, the file of a table that the manifest
//! names no more becomes **garbage**. It is removed later by a background thread
//! ([`TableDirectory::remove_garbage`]), because the last owner may be a reader, and readers do not wait for the disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cache::BlockCache;
use super::catalogue::EngineId;
use super::open_files::OpenFiles;
use super::shared::name_shortage;
use super::table::{Properties, Table, TableMetadata, TableUid};
use crate::storage::{Error, Result};
use crate::util::fs::FileSystem;

/// Numbers the files of an engine. Never given out twice while the engine is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileNumber(pub(crate) u64);

impl FileNumber {
    /// Name of the table with this number.
    pub(crate) fn table_name(self) -> String {
        format!("{:06}.sst", self.0)
    }

    /// Name of the manifest with this number.
    pub(crate) fn manifest_name(self) -> String {
        format!("{:06}.manifest", self.0)
    }

    /// The number in a name that ends with `.extension`, if it is the name that [`Self`] gives.
    pub(crate) fn parse(name: &str, extension: &str) -> Option<Self> {
        let digits = name.strip_suffix(extension)?.strip_suffix('.')?;
        let number = digits.parse().ok()?;
        (format!("{number:06}") == digits).then_some(Self(number))
    }
}

/// The directory of one engine.
#[derive(Debug)]
pub(crate) struct TableDirectory {
    // Constant.
    files: Arc<OpenFiles>,
    path: PathBuf,
    cache: Arc<BlockCache>,
    uid_seed: u64,
    // Own synchronisation.
    next: AtomicU64,
    garbage: Mutex<Vec<FileNumber>>,
    /// What the manifest did not name when it was opened.
    orphans: Mutex<Vec<String>>,
}

impl TableDirectory {
    /// The directory at `path`, which exists. `uid_seed` must be random: the uids of new tables come from it.
    pub(crate) fn new(
        files: Arc<OpenFiles>,
        path: PathBuf,
        cache: Arc<BlockCache>,
        uid_seed: u64,
    ) -> Arc<Self> {
        let next = AtomicU64::new(1);
        let (garbage, orphans) = (Mutex::default(), Mutex::default());
        Arc::new(Self { files, path, cache, uid_seed, next, garbage, orphans })
    }

    /// The low bits of the engine's number, as its name says it; 0 when that says none.
    pub(super) fn engine(&self) -> u16 {
        let name = self.path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(EngineId::parse).map_or(0, |id| id.0 & u64::from(u16::MAX));
        u16::try_from(number).expect("16 bits of it")
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is on.
    pub(crate) fn fs(&self) -> &dyn FileSystem {
        &**self.files.fs()
    }

    /// The path of a table.
    pub(crate) fn table_path(&self, number: FileNumber) -> PathBuf {
        self.path.join(number.table_name())
    }

    /// A number for a new file, and a uid should that be a table.
    pub(crate) fn allocate(&self) -> (FileNumber, TableUid) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let uid = xxh3_64_with_seed(&number.to_le_bytes(), self.uid_seed);
        (FileNumber(number), TableUid(uid))
    }

    /// Every number given out from now on is above `number`.
    pub(super) fn skip(&self, number: FileNumber) {
        self.next.fetch_max(number.0 + 1, Ordering::Relaxed);
    }

    /// Makes the names of new files durable.
    pub(super) fn sync(&self) -> Result<()> {
        let synced = self.fs().sync_dir(&self.path);
        synced.map_err(|error| name_shortage(Error::io("sync", &self.path, error)))
    }

    /// Removes the files that nobody needs any more; returns how many. What cannot be removed is tried again by the
    /// next call, and is an orphan for the next opening of the engine.
    pub(crate) fn remove_garbage(&self) -> Result<usize> {
        let garbage = std::mem::take(&mut *self.garbage.lock());
        for (done, &number) in garbage.iter().enumerate() {
            if let Err(error) = self.remove(&number.table_name()) {
                self.garbage.lock().extend_from_slice(&garbage[done..]);
                return Err(error);
            }
        }
        Ok(garbage.len())
    }

    /// These files are in nobody's use.
    pub(super) fn set_orphans(&self, names: Vec<String>) {
        *self.orphans.lock() = names;
    }

    /// Removes the orphans. Not before it is certain that the manifest is the newest one: what stays can be repaired.
    pub(super) fn remove_orphans(&self) -> Result<()> {
        let orphans = std::mem::take(&mut *self.orphans.lock());
        orphans.iter().try_for_each(|name| self.remove(name))
    }

    /// Removes a file; it is no error when there is none.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match self.fs().remove(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, error))
            }
            _ => Ok(()),
        }
    }
}

/// One table of an engine. See the [module](self).
#[derive(Debug)]
pub(crate) struct TableFile {
    // Constant.
    directory: Arc<TableDirectory>,
    number: FileNumber,
    metadata: TableMetadata,
    // Own synchronisation.
    table: OnceLock<Arc<Table>>,
    obsolete: AtomicBool,
}

impl TableFile {
    /// The table `number`, of which `metadata` was written.
    pub(crate) fn new(
        directory: Arc<TableDirectory>,
        number: FileNumber,
        metadata: TableMetadata,
    ) -> Arc<Self> {
        let (table, obsolete) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Self { directory, number, metadata, table, obsolete })
    }

    /// Which one.
    pub(crate) const fn number(&self) -> FileNumber {
        self.number
    }

    /// What was written.
    pub(crate) const fn metadata(&self) -> &TableMetadata {
        &self.metadata
    }

    /// What the table says about itself, known without opening it.
    pub(crate) const fn properties(&self) -> &Properties {
        &self.metadata.properties
    }

    /// Bytes of the file.
    pub(crate) const fn size_bytes(&self) -> u64 {
        self.metadata.size_bytes
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.table_path(self.number)
    }

    /// The table, opened by the first call.
    #[inline]
    pub(crate) fn table(&self) -> Result<&Arc<Table>> {
        match self.table.get() {
            Some(table) => Ok(table),
            None => self.open(),
        }
    }

    #[cold]
    fn open(&self) -> Result<&Arc<Table>> {
        let directory = &self.directory;
        let (path, uid) = (self.path(), Some(self.metadata.uid));
        let file = directory.files.open(&path).map_err(|error| Error::io("open", &path, error))?;
        let table = Table::open_file(file, &path, &directory.cache, uid)?;
        // Two who open at the same time read twice, and keep one.
        Ok(self.table.get_or_init(|| Arc::new(table)))
    }

    /// The manifest names it no more: its file goes with its last owner.
    pub(super) fn set_obsolete(&self) {
        self.obsolete.store(true, Ordering::Release);
    }
}

impl Drop for TableFile {
    fn drop(&mut self) {
        if *self.obsolete.get_mut() {
            self.directory.garbage.lock().push(self.number);
        }
    }
}
