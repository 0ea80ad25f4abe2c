//! The one `sled::Db` of an environment, and what sled 0.34 leaves to its user: durability, failures, a full disk.
//!
//! # What sled does and what is added
//!
//! All trees of a `Db` share one log, so `Db::flush` covers every tree and the log keeps the order of writes over all of them.
//! Read in its source, and the reason for what is done here:
//!
//! * A batch lies in buffers of the process until a flush or until its buffer is full. So [`Durability::Buffered`] needs a
//!   flush; there is no cheaper way to hand it to the operating system.
//! * A flush ends with `sync_file_range`, which neither syncs the size of the file nor empties the drive's cache. And values
//!   (and pages) above 128 KiB go to files of their own, which sled never syncs. So [`Durability::Sync`] is a flush, then
//!   `fdatasync` of the log file, then a sync of each new one of those files and of their directory.
//! * A flush holds a process-wide lock as a reader, `apply_batch` takes it as a writer, and readers queue behind a waiting
//!   writer. So without care a `get` would wait for a flush. Therefore flush and apply take turns by a lock of their own (`turn`),
//!   and none of them ever waits inside sled's lock. Its fair hand-over lets all batches that wait go before the next flush.
//! * The background thread of sled is kept: only it gives back the space of obsolete log segments. It also flushes and syncs, once
//!   a second, but logs its failures only; the next own sync sees them again, because the kernel reports a writeback error once for
//!   each open file description, and this module has its own.
//! * Damage of the log shows as an error or as a panic. Panics are caught and reported as [`Error::Corruption`]. Damage in
//!   the tail of the log is cut off by sled at open without a word: it cannot tell it from a torn write. That is a limit of
//!   this engine.
//!
//! Lock order: an engine's writer, `turn`, then the leaves (`written`, `synced`, `failure`, `blobs`).

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use sled::IVec;

use super::SledOptions;
use super::group::{GroupSync, Round};
use crate::storage::dump::sync_directory;
use crate::storage::limits::reserve_for;
use crate::storage::{Durability, Error, Result, WriteBatch};

const DATABASE_DIRECTORY: &str = "sled";
const LOCK_FILE: &str = "lock";

/// How often sled's own thread flushes and cleans. Durability does not depend on it.
const MAINTENANCE_INTERVAL_MS: u64 = 1_000;

/// How long to wait for threads of sled's pool that still hold the file of an environment that was closed in this process.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSING_POLL: Duration = Duration::from_millis(2);

/// Log bytes that a batch takes at most for each of its own: rows are rewritten with their pages now and then.
const LOG_BYTES_PER_BYTE: u64 = 2;

/// Rounds that cover a write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cover {
    written: Round,
    synced: Round,
}

impl Cover {
    /// The sync that makes it durable.
    pub(super) const fn synced(self) -> Round {
        self.synced
    }
}

/// The database of an environment.
pub(super) struct Store {
    // Dropped in this order: the lock goes last.
    database: sled::Db,
    /// For `fdatasync`, and to see writeback errors that sled's own handle has swallowed.
    log_file: File,
    /// Files beside the log that are durable.
    blobs: Mutex<HashSet<OsString>>,
    turn: Mutex<()>,
    written: GroupSync,
    synced: GroupSync,
    failure: Mutex<Option<String>>,
    paths: Paths,
    disk_reserve_bytes: u64,
    _lock: File,
}

struct Paths {
    directory: PathBuf,
    log: PathBuf,
    blobs: PathBuf,
}

impl Store {
    /// Opens the database under `directory`, or creates it. What it holds is durable when this returns.
    pub(super) fn open(directory: &Path, options: &SledOptions) -> Result<Self> {
        fs::create_dir_all(directory).map_err(|error| Error::io("create", directory, error))?;
        let lock = lock(directory)?;
        let root = directory.join(DATABASE_DIRECTORY);
        let paths = Paths {
            directory: directory.to_owned(),
            log: root.join("db"),
            blobs: root.join("blobs"),
        };
        let config = sled::Config::new()
            .path(&root)
            .cache_capacity(options.cache_bytes)
            .mode(sled::Mode::HighThroughput)
            .flush_every_ms(Some(MAINTENANCE_INTERVAL_MS));
        let database = open_database(&config, &paths)?;
        let log_file =
            File::open(&paths.log).map_err(|error| Error::io("open", &paths.log, error))?;
        let store = Self {
            database,
            log_file,
            blobs: Mutex::default(),
            turn: Mutex::default(),
            written: GroupSync::default(),
            synced: GroupSync::default(),
            failure: Mutex::default(),
            paths,
            disk_reserve_bytes: options.disk_reserve_bytes,
            _lock: lock,
        };
        // A killed process may have left what is only in the page cache; it counts as durable from here on.
        store.sync()?;
        let conf = root.join("conf");
        File::open(&conf)
            .and_then(|file| file.sync_all())
            .map_err(|error| Error::io("sync", &conf, error))?;
        sync_directory(&root)?;
        sync_directory(directory)?;
        directory.parent().map_or(Ok(()), sync_directory)?;
        Ok(store)
    }

    pub(super) const fn database(&self) -> &sled::Db {
        &self.database
    }

    /// Calls into sled; its errors and panics come back as errors of this crate.
    pub(super) fn call<T>(
        &self,
        operation: &'static str,
        call: impl FnOnce() -> sled::Result<T>,
    ) -> Result<T> {
        guarded(operation, &self.paths, call)
    }

    /// The next row of an iteration over a tree.
    pub(super) fn next(
        &self,
        rows: &mut impl Iterator<Item = sled::Result<(IVec, IVec)>>,
    ) -> Result<Option<(IVec, IVec)>> {
        self.call("read", || rows.next().transpose())
    }

    /// Damage that was found in rows.
    pub(super) fn damaged(&self, detail: &str) -> Error {
        Error::corruption(&self.paths.log, 0, detail)
    }

    /// [`Error::Poisoned`] after a failed write or sync.
    pub(super) fn check_writable(&self) -> Result<()> {
        match &*self.failure.lock() {
            None => Ok(()),
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
        }
    }

    /// What `error`, met while a batch that is applied waited to become safe, means for that batch. Somebody else's failure
    /// looks as if nothing had been applied.
    pub(super) fn after_apply(&self, error: Error) -> Error {
        match error {
            Error::Poisoned { cause } => {
                Error::io("sync", &self.paths.log, io::Error::other(cause))
            }
            other => other,
        }
    }

    /// [`Error::DiskFull`] when `batch` could meet the end of the disk, which would poison the environment.
    pub(super) fn check_space(&self, batch: &WriteBatch) -> Result<()> {
        self.check_room(batch.size_bytes() as u64, reserve_for(batch, self.disk_reserve_bytes))
    }

    /// As [`Self::check_space`] for `bytes` that are to be stored.
    pub(super) fn check_room_for(&self, bytes: u64) -> Result<()> {
        self.check_room(bytes, self.disk_reserve_bytes)
    }

    fn check_room(&self, bytes: u64, reserve: u64) -> Result<()> {
        let directory = &self.paths.directory;
        let disk = rustix::fs::statvfs(directory)
            .map_err(|error| Error::io("statvfs", directory, error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let needed = bytes.saturating_mul(LOG_BYTES_PER_BYTE).saturating_add(reserve);
        if free >= needed {
            return Ok(());
        }
        Err(Error::DiskFull { path: directory.clone() })
    }

    /// Applies a batch to a tree: whole, or, after a failure, to an unknown part, and then nothing is ever written again.
    pub(super) fn apply(&self, tree: &sled::Tree, batch: sled::Batch) -> Result<Cover> {
        self.change("apply", || tree.apply_batch(batch))?;
        Ok(self.cover())
    }

    /// Runs a change other than a batch, with the same consequences of a failure.
    pub(super) fn change<T>(
        &self,
        operation: &'static str,
        change: impl FnOnce() -> sled::Result<T>,
    ) -> Result<T> {
        let turn = self.turn.lock();
        let result = self
            .check_writable()
            .and_then(|()| self.call(operation, change).map_err(|error| self.poison(error)));
        MutexGuard::unlock_fair(turn);
        result
    }

    /// The syncs that cover everything written until now.
    pub(super) fn cover(&self) -> Cover {
        Cover { written: self.written.next_round(), synced: self.synced.next_round() }
    }

    /// Waits until what `cover` stands for is as safe as `durability` says.
    pub(super) fn secure(&self, cover: Cover, durability: Durability) -> Result<()> {
        match durability {
            Durability::None => Ok(()),
            Durability::Buffered => self.written.wait(cover.written, || self.flush()),
            Durability::Sync => self.synced.wait(cover.synced, || self.sync()),
        }
    }

    /// The newest sync that succeeded.
    pub(super) fn synced(&self) -> Round {
        self.synced.ended()
    }

    /// Bytes of all files.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.call("size", || self.database.size_on_disk()).unwrap_or(0)
    }

    /// Hands everything to the operating system.
    fn flush(&self) -> Result<()> {
        self.change("flush", || self.database.flush().map(|_| ()))
    }

    /// Makes everything durable.
    fn sync(&self) -> Result<()> {
        self.flush()?;
        self.log_file
            .sync_data()
            .map_err(|error| Error::io("sync", &self.paths.log, error))
            .and_then(|()| self.sync_blobs())
            .map_err(|error| self.poison(error))
    }

    /// Syncs the files beside the log that are new. They are never written twice.
    fn sync_blobs(&self) -> Result<()> {
        let failed = |error| Error::io("sync", &self.paths.blobs, error);
        let mut durable = self.blobs.lock();
        let mut present = HashSet::new();
        for entry in fs::read_dir(&self.paths.blobs).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if !durable.contains(&name) {
                match File::open(self.paths.blobs.join(&name)) {
                    Ok(file) => file.sync_all().map_err(failed)?,
                    // sled's cleaner was faster: it is obsolete.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(failed(error)),
                }
            }
            present.insert(name);
        }
        if present.difference(&durable).next().is_some() {
            sync_directory(&self.paths.blobs)?;
        }
        *durable = present;
        Ok(())
    }

    fn poison(&self, error: Error) -> Error {
        self.failure.lock().get_or_insert_with(|| error.to_string());
        error
    }
}

fn lock(directory: &Path) -> Result<File> {
    let path = directory.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| Error::io("open", &path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Locked { path: directory.to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(Error::io("lock", &path, error)),
    }
}

/// The lock of the directory is held here, so whoever still locks sled's file is about to let go: a thread of sled's pool that
/// finishes its last write after the database was dropped.
fn open_database(config: &sled::Config, paths: &Paths) -> Result<sled::Db> {
    let begun = Instant::now();
    loop {
        let result = guarded("open", paths, || match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("acquire lock") => Ok(None),
            result => result.map(Some),
        })?;
        match result {
            Some(database) => return Ok(database),
            None if begun.elapsed() < CLOSING_TIMEOUT => thread::sleep(CLOSING_POLL),
            None => return Err(Error::Locked { path: paths.directory.clone() }),
        }
    }
}

fn guarded<T>(
    operation: &'static str,
    paths: &Paths,
    call: impl FnOnce() -> sled::Result<T>,
) -> Result<T> {
    // Unwind safety: after a panic in a write nothing is written again; reads change no state of this crate.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| explain(operation, paths, error)),
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            let detail = format!("sled panicked in {operation}: {message}");
            Err(Error::corruption(&paths.log, 0, detail))
        }
    }
}

fn explain(operation: &'static str, paths: &Paths, error: sled::Error) -> Error {
    match error {
        sled::Error::Io(error) => Error::io(operation, &paths.log, error),
        sled::Error::Unsupported(message) => Error::Invalid(message),
        sled::Error::Corruption { at, .. } => {
            let offset = at.map_or(0, |at| at.lid());
            Error::corruption(&paths.log, offset, format!("sled found damage in {operation}"))
        }
        sled::Error::CollectionNotFound(name) => {
            let name = String::from_utf8_lossy(&name);
            Error::corruption(&paths.log, 0, format!("tree {name} is gone"))
        }
        sled::Error::ReportableBug(message) => Error::corruption(&paths.log, 0, message),
    }
}
