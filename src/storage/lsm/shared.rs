//! What all engines of an environment share: file system, settings, block cache, log, memory budget, threads.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cache::BlockCache;
use super::open_files::OpenFiles;
use super::room::Room;
use super::settings::LsmOptions;
use super::worker::Queue;
use crate::storage::{Error, Result};
use crate::util::fs::{FileSystem, is_disk_full, is_out_of_handles};
use crate::wal::{self, Wal};

/// Kind of the log's records that hold a batch: first seqno (8 bytes, little-endian), encoded batch.
pub(super) const KIND_BATCH: wal::Kind = wal::Kind(16);

/// Largest memtable. With the batch that fills it, it fits into the 3 GiB of data that a table takes.
const MEMTABLE_BYTES_MAX: usize = 1 << 30;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Shared {
    // Constant.
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) directory: PathBuf,
    pub(super) options: LsmOptions,
    pub(super) cache: Arc<BlockCache>,
    pub(super) files: Arc<OpenFiles>,
    /// Set once, when what it held has been replayed; never without `options.log`.
    pub(super) log: OnceLock<Wal>,
    // Own synchronisation.
    pub(super) room: Room,
    pub(super) queue: Queue,
    /// The log has failed: no engine takes writes.
    pub(super) failure: Failure,
    seeds: AtomicU64,
    /// Where the pacers' time begins.
    pub(super) started: Instant,
}

impl Shared {
    pub(super) fn new(fs: Arc<dyn FileSystem>, directory: PathBuf, options: LsmOptions) -> Self {
        let memtable_bytes = options.memtable_bytes.min(MEMTABLE_BYTES_MAX);
        let options = LsmOptions { memtable_bytes, ..options };
        Self {
            files: OpenFiles::new(Arc::clone(&fs), options.open_files_max),
            fs,
            directory,
            cache: BlockCache::new(options.cache_bytes),
            log: OnceLock::new(),
            room: Room::new(options.disk_reserve_bytes),
            queue: Queue::default(),
            failure: Failure::default(),
            seeds: AtomicU64::new(0),
            started: Instant::now(),
            options,
        }
    }

    /// A number that looks random, another one with each call and each opening.
    pub(super) fn seed(&self) -> u64 {
        let number = self.seeds.fetch_add(1, Ordering::Relaxed);
        xxh3_64_with_seed(&number.to_le_bytes(), self.options.seed)
    }

    /// [`Error::DiskFull`] when there is no room for anything new.
    pub(super) fn check_room(&self) -> Result<()> {
        self.room.check_any(&*self.fs, &self.directory)
    }

    /// The log, when there is one and it was opened.
    pub(super) fn log(&self) -> Option<&Wal> {
        self.log.get()
    }

    /// An error of the log for a batch of which nothing was applied.
    pub(super) fn refused(&self, error: wal::Error) -> Error {
        if let wal::Error::Poisoned { .. } = &error {
            let cause = error.to_string();
            self.failure.set(&cause);
            return Error::Poisoned { cause };
        }
        from_log(error)
    }

    /// An error of the log for a batch that was applied: whether it survives is unknown.
    pub(super) fn in_doubt(&self, error: wal::Error) -> Error {
        if let wal::Error::Poisoned { operation, path, source } = error {
            let cause = Error::Io { operation, path, source };
            self.failure.set(&cause.to_string());
            return cause;
        }
        from_log(error)
    }
}

/// The same error in the words of engines.
pub(super) fn from_log(error: wal::Error) -> Error {
    match error {
        wal::Error::Corruption { file, offset, detail } => {
            Error::Corruption { file, offset, detail }
        }
        wal::Error::Io { operation, path, source } => {
            name_shortage(Error::Io { operation, path, source })
        }
        wal::Error::Poisoned { .. } => Error::Poisoned { cause: error.to_string() },
        wal::Error::DiskFull { path } => Error::DiskFull { path },
        wal::Error::Invalid(text) => Error::Invalid(text),
        wal::Error::Locked { path } => Error::Locked { path },
    }
}

/// Creates a directory and all that lead to it, durably.
pub(super) fn create_directory(fs: &dyn FileSystem, directory: &Path) -> Result<()> {
    let failed = |operation, path: &Path, error| name_shortage(Error::io(operation, path, error));
    let mut missing = vec![directory];
    while let Some(parent) = missing.last().and_then(|path| path.parent())
        && !parent.as_os_str().is_empty()
        && !fs.exists(parent).map_err(|error| failed("look for", parent, error))?
    {
        missing.push(parent);
    }
    fs.create_dir_all(directory).map_err(|error| failed("create", directory, error))?;
    // The directory's own name also when it was there already: whoever made it may have been killed before his sync.
    for path in missing.into_iter().rev() {
        path.parent().map_or(Ok(()), |parent| sync_directory(fs, parent))?;
    }
    Ok(())
}

/// Makes the names in a directory durable; the parent of a relative path of one component is empty.
pub(super) fn sync_directory(fs: &dyn FileSystem, directory: &Path) -> Result<()> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    fs.sync_dir(directory).map_err(|error| Error::io("sync", directory, error))
}

impl From<wal::Error> for Error {
    fn from(error: wal::Error) -> Self {
        from_log(error)
    }
}

/// What the machine is short of by its own name, whatever call met it. Not a full disk that a sync met: what that leaves
/// behind is unknown, and only who knows that nobody uses the file may say otherwise.
pub(super) fn name_shortage(error: Error) -> Error {
    match error {
        Error::Io { path, source, .. } if is_out_of_handles(&source) => {
            Error::NoHandles { path, source }
        }
        Error::Io { operation, path, source } if operation != "sync" && is_disk_full(&source) => {
            Error::DiskFull { path }
        }
        other => other,
    }
}

/// Whether what failed has changed nothing that anybody relies on, and may be done again later. Anything else, above all a
/// write or a sync, must end writes.
pub(super) fn changed_nothing(error: &Error) -> bool {
    match error {
        Error::Io { operation, .. } => {
            matches!(*operation, "create" | "open" | "read" | "read the size")
        }
        Error::Poisoned { .. } => false,
        _ => true,
    }
}

/// Why writes are refused; set once.
#[derive(Debug, Default)]
pub(super) struct Failure {
    is_set: AtomicBool,
    cause: Mutex<String>,
}

impl Failure {
    /// The first cause stays.
    pub(super) fn set(&self, cause: &str) {
        let mut first = self.cause.lock();
        if first.is_empty() {
            cause.clone_into(&mut first);
            self.is_set.store(true, Ordering::Release);
        }
    }

    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// [`Error::Poisoned`] once it is set.
    #[inline]
    pub(super) fn check(&self) -> Result<()> {
        if !self.is_set() {
            return Ok(());
        }
        Err(Error::Poisoned { cause: self.cause.lock().clone() })
    }
}
