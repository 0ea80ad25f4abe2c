//! The append log of a node: segmented, checksummed, group-committed. One log takes the records of many **owners** (an
//! engine's batches, the entries and votes of a Raft group) in one order, so that one fdatasync serves whatever waits.
//!
//! Callers: `storage/lsm` (write-ahead log of the engines), `raft` (log of all groups). Invariants: imports `util`
//! only; no async runtime, no engine, no Raft; bytes and positions.
//!
//! # Promises
//!
//! * **Order.** Records have one order, that of their [`Position`]s. What survives a crash is a prefix of it: a record
//!   that is lost is never before one that survived, over all owners and segments.
//! * **Levels.** After [`Wal::commit`] with [`Level::Buffered`] the record and all before it were handed to the
//!   operating system and survive a killed process; with [`Level::Sync`] they are on stable storage. A level that is
//!   already reached costs nothing. Opening makes everything it replays durable before it returns.
//! * **Positions are never used twice**, not even those of records that a crash took.
//! * **A failed write or sync is final** ([`Error::Poisoned`]): no more appends, no acknowledgement of what was not
//!   durable before, no second sync. Reading goes on. Only a segment that cannot be made is harmless: [`Error::DiskFull`],
//!   or [`Error::Io`] of `create` or for want of a handle. Space and handles are taken segment by segment, ahead of use, so
//!   it shows in [`Wal::append`], before anything was written.
//! * **Damage is told from a torn tail.** Every byte in use is under a checksum. Damage below a place that a later
//!   record vouches for, a segment that is missing between two others, or one under another's name: refused with file
//!   and offset, files untouched. Without such a voucher it is a torn tail, and cut.
//! * **Bounded.** Records wait in a buffer of [`Options::buffer_bytes_max`]; above it `append` writes. Opening holds
//!   one record and one window in memory.
//!
//! # Life of a record
//!
//! `append` takes a place in the active segment under the one mutex and copies the record into the buffer: no system
//! call. `commit` writes what is buffered, with one write for everybody, and syncs (`commit.rs` has the protocol). A
//! full segment is followed by one that was made ready before; a thread of the log makes the next. Owners
//! [`release`](Wal::release) what they need no more; a segment that nobody needs is removed, oldest first.
//!
//! For a log of Raft groups: one owner for each group; entries, votes, truncations and purges are records of their own,
//! and the group's index of positions is the caller's. `append` then [`Wal::on_level`] is an append with a callback; a
//! vote or a truncation, which must be durable, is `append` then `commit`. A purge is a record and a `release`:
//! truncation and purge never touch other owners' bytes. What must outlive the purge (vote, purged id) is appended
//! again before the release.
//!
//! # Who writes: leaders, not a writer thread
//!
//! A thread that commits does the write itself, for all that wait. A dedicated writer would cost every commit two
//! context switches: nothing beside a slow fdatasync, but tens of times a write into the page cache. What nobody blocks
//! for, the callbacks, is driven by a thread of the log that commits like everybody else and alone calls them: their
//! order needs no further thought.
//!
//! # Files
//!
//! `NNNNNNNNNN.wal` (`segment.rs` has the header, `record.rs` the records), `*.tmp` while one is made, `LOCK`.
//!
//! # Failures
//!
//! | what fails | what happens |
//! |---|---|
//! | process killed | what was written is there; the buffer is lost |
//! | power lost | what was synced is there, then a prefix of the rest |
//! | crash while opening | the next opening does it again; no order of survival changes the outcome |
//! | write, sync, or the sync of the directory | poisoned; whoever waits gets the file and the cause |
//! | no room or no handle for a segment | `append` fails, nothing changes, works again with room, or with a handle |
//! | removal of a released segment | reported by [`Wal::maintain`] and in [`Status`], tried again |
//! | read | that read fails |
//! | bit flip below a vouched place, missing or swapped segment | open or read is refused, file and offset named |
//! | bit flip in the last group before a crash, which nothing later vouches for | taken for a torn tail. [`Wal::close`] leaves a voucher, so it needs a crash |
//! | the newest segment missing | the one before says that there is one: open is refused. If it was the only one, the log is empty |
//! | the *oldest* segments missing | looks like a removal: an owner knows what it released, and finds the gap in its own numbers |
//! | a thread panics while it writes, or a callback panics | poisoned |
//!
//! # Threads, locks
//!
//! `wal-callbacks` (drives and calls callbacks) and `wal-files` (makes the next segment, syncs full ones while syncs are
//! asked for, removes released ones); with [`Background::Caller`] there are none, and somebody calls [`Wal::drive`] and
//! [`Wal::maintain`].
//! Lock order: `files` before `state`. No file is touched under `state`.

mod callbacks;
mod commit;
mod error;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod owners;
mod record;
mod recovery;
mod segment;
mod state;
mod status;
mod sync;
mod tail;
#[cfg(test)]
mod tests;
mod window;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

pub use self::error::{Error, Result};
pub use self::owners::Pin;
pub use self::record::BODY_BYTES_MAX;
pub use self::recovery::{OwnerSummary, Recovery, TornTail};
pub use self::status::{BUCKETS, Counts, Histogram, Status};

use self::callbacks::Callback;
use self::state::Shared;
use crate::util::fs::{DirLock, FileSystem};

/// Whose record it is. The numbers are the callers'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u64);

/// What a record is. The numbers from [`Kind::FIRST`] on are the callers'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u8);

impl Kind {
    /// The smallest a caller may use; those below are the log's own.
    pub const FIRST: Self = Self(16);
}

/// Where a record begins; ordered as the records are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    segment: u32,
    offset: u32,
}

impl Position {
    /// Before every record.
    pub const BEGINNING: Self = Self { segment: 0, offset: 0 };

    /// As a number of the same order, for storing.
    pub const fn as_u64(self) -> u64 {
        (self.segment as u64) << 32 | self.offset as u64
    }

    /// From the number of [`Self::as_u64`].
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are cut out on purpose")]
    pub const fn from_u64(number: u64) -> Self {
        Self { segment: (number >> 32) as u32, offset: number as u32 }
    }

    /// The file that it is in, of the log in `dir`.
    pub fn file_in(self, dir: &Path) -> PathBuf {
        dir.join(segment::segment_name(self.segment))
    }

    /// The segment that it is in. Those of later positions have the same number or a higher one.
    pub const fn segment(self) -> u32 {
        self.segment
    }

    /// Where in that file, in bytes.
    pub const fn offset(self) -> u64 {
        self.offset as u64
    }

    const fn new(segment: u32, offset: u32) -> Self {
        Self { segment, offset }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}

/// How safe a record is. Later levels include earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Handed to the operating system: survives a killed process, not a power loss.
    Buffered,
    /// On stable storage.
    Sync,
}

/// A record that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Where it is.
    pub position: Position,
    /// Whose it is.
    pub owner: Owner,
    /// What it is.
    pub kind: Kind,
    /// What it holds.
    pub body: &'a [u8],
}

/// A record that was read, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose it is.
    pub owner: Owner,
    /// What it is.
    pub kind: Kind,
    /// What it holds.
    pub body: Vec<u8>,
}

/// Who does what can be done later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Background {
    /// Threads of the log.
    Threads,
    /// The caller, by [`Wal::drive`] and [`Wal::maintain`]: for simulations on one thread. Nothing is lost by not
    /// calling, but callbacks wait, segments are made when they are needed and none is removed.
    Caller,
}

/// Settings of a log.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of a segment, a multiple of 8 from [`SEGMENT_BYTES_MIN`] to [`SEGMENT_BYTES_MAX`]. A record that is larger
    /// gets a segment of its own size. May differ from opening to opening.
    pub segment_bytes: u32,
    /// Most bytes of records that wait to be written. One record may be larger and then waits alone.
    pub buffer_bytes_max: usize,
    /// Most callbacks that wait. Above it [`Wal::on_level`] blocks until some were called.
    pub callbacks_max: usize,
    /// Random, another one for each opening: whoever knows it can write values that pass for records of a segment.
    pub salt_seed: u64,
    /// Who does what can be done later.
    pub background: Background,
}

/// Smallest size of a segment.
pub const SEGMENT_BYTES_MIN: u32 = 1 << 10;

/// Largest size of a segment.
pub const SEGMENT_BYTES_MAX: u32 = 1 << 30;

impl Options {
    /// The defaults: segments of 64 MiB, 16 MiB of buffer, 65,536 callbacks, own threads.
    pub const fn new(salt_seed: u64) -> Self {
        Self {
            segment_bytes: 64 << 20,
            buffer_bytes_max: 16 << 20,
            callbacks_max: 1 << 16,
            salt_seed,
            background: Background::Threads,
        }
    }

    fn check(&self) -> Result<()> {
        let Self { segment_bytes, buffer_bytes_max, callbacks_max, .. } = self;
        let legal = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(segment_bytes)
            && segment_bytes.is_multiple_of(record::ALIGNMENT);
        if !legal {
            return Err(Error::Invalid(format!(
                "segments of {segment_bytes} bytes: allowed are multiples of {} from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}",
                record::ALIGNMENT
            )));
        }
        if *buffer_bytes_max == 0 || *callbacks_max == 0 {
            return Err(Error::Invalid("a buffer or a queue of size 0".to_owned()));
        }
        Ok(())
    }
}

/// The log. See the [module](self).
///
/// # Concurrency
///
/// Any thread may call anything. `append`, `commit`, `on_level` and `read` may block on disk.
#[derive(Debug)]
pub struct Wal {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    _lock: DirLock,
}

impl Wal {
    /// Opens the log in `dir`, or makes an empty one: hands every record to `visit`, in order, cuts a torn tail, and
    /// makes what was visited durable. An error of `visit` ends the opening and changes nothing on disk. When damage is
    /// found, the sound records in front of it may have been visited.
    ///
    /// Afterwards an owner holds all its records until it [releases](Self::release) them.
    ///
    /// # Errors
    ///
    /// Of `visit`, or [`Error::Corruption`], [`Error::Io`], [`Error::Locked`], [`Error::Invalid`] for bad options or a
    /// newer format. A full disk is no error of the opening: the next append reports it.
    pub fn open<E: From<Error>>(
        fs: Arc<dyn FileSystem>,
        dir: impl Into<PathBuf>,
        options: Options,
        visit: impl FnMut(RecordRef<'_>) -> Result<(), E>,
    ) -> Result<(Self, Recovery), E> {
        options.check()?;
        let dir = dir.into();
        let lock = files::lock(&*fs, &dir)?;
        let (shared, recovery) = recovery::recover(fs, dir, options, visit)?;
        let shared = Arc::new(shared);
        let threads = match shared.options.background {
            Background::Threads => callbacks::spawn(&shared).map_err(|error| {
                shared.stop();
                Error::io("start of the threads", &shared.dir, error)
            })?,
            Background::Caller => Vec::new(),
        };
        Ok((Self { shared, threads, _lock: lock }, recovery))
    }

    /// Hands every record of the log in `dir` to `visit` and judges its end, as [`open`](Self::open) does, but changes
    /// nothing: what would be cut is only reported. Nobody may have the log open.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open).
    pub fn inspect<E: From<Error>>(
        fs: &dyn FileSystem,
        dir: &Path,
        visit: impl FnMut(RecordRef<'_>) -> Result<(), E>,
    ) -> Result<Recovery, E> {
        recovery::inspect(fs, dir, visit)
    }

    /// Adds a record, the concatenation of `parts`. It is in the buffer, and safe against nothing yet. Concurrent
    /// appends take their places in some order, each one whole.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a reserved kind or a body above [`BODY_BYTES_MAX`]; [`Error::DiskFull`] or [`Error::Io`] when
    /// the next segment cannot be made; [`Error::Poisoned`]. None of them leaves a record.
    pub fn append(&self, owner: Owner, kind: Kind, parts: &[&[u8]]) -> Result<Position> {
        self.shared.append(owner, kind, parts)
    }

    /// Returns once the record at `position` and all before it have reached `level`.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] when they have not and never will; whether they survive is unknown then. [`Error::Invalid`]
    /// for a position that was not given out.
    pub fn commit(&self, position: Position, level: Level) -> Result<()> {
        self.shared.commit(position, level)
    }

    /// Returns once everything appended before the call has reached `level`.
    pub fn barrier(&self, level: Level) -> Result<()> {
        self.shared.barrier(level)
    }

    /// Has `callback` called once the record at `position` has reached `level`, or with the error when it never will.
    /// Callbacks are called one at a time, on the log's thread, in the order of their positions among those that wait
    /// (and of registration, for one position): an owner that registers in order is called in order. They must be
    /// short, and may call the log. Blocks while [`Options::callbacks_max`] wait, except on the log's thread.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a position that was not given out; the callback is dropped.
    pub fn on_level(
        &self,
        position: Position,
        level: Level,
        callback: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        let callback: Callback = Box::new(callback);
        self.shared.on_level(position, level, callback)
    }

    /// Where the next record goes, unless it needs another segment. Records with a smaller position have been appended.
    pub fn end(&self) -> Position {
        self.shared.state.lock().end
    }

    /// The first position that has not reached `level`.
    pub fn reached(&self, level: Level) -> Position {
        self.shared.state.lock().reached(level)
    }

    /// The record at `position`, checked. A record that is only in the buffer is written first.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the position is not in the log (any more), [`Error::Corruption`], also when no record
    /// begins there, [`Error::Io`], [`Error::Poisoned`] for a record that could not be written.
    pub fn read(&self, position: Position) -> Result<Record> {
        self.shared.read(position)
    }

    /// `owner` needs nothing before `position` any more. Never goes back. Removal follows by itself, later.
    pub fn release(&self, owner: Owner, position: Position) {
        self.shared.release(owner, position);
    }

    /// `owner` needs nothing of what it has appended so far.
    pub fn release_all(&self, owner: Owner) {
        self.shared.release_all(owner);
    }

    /// Calls what callbacks can be called, after a commit for the first if needed. Returns whether there was any. What
    /// the thread `wal-callbacks` does.
    pub fn drive(&self) -> bool {
        self.shared.drive()
    }

    /// Makes the next segment, syncs full ones when syncs were asked for lately, and removes released ones. What the thread
    /// `wal-files` does.
    ///
    /// # Errors
    ///
    /// [`Error::DiskFull`] or [`Error::Io`] when the next segment cannot be made, after all else was done; [`Error::Io`]
    /// when a removal failed. Either is tried again next time. [`Error::Poisoned`].
    pub fn maintain(&self) -> Result<()> {
        self.shared.maintain()
    }

    /// Sizes and counts for operators.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Makes everything durable, calls the callbacks that wait, and leaves a voucher for the last records. Without it
    /// (a drop) everything stays as safe as it was, and callbacks that wait are called with an error or, if they can
    /// be, as they should.
    pub fn close(mut self) -> Result<()> {
        let closed = self.shared.close();
        self.stop();
        closed
    }

    fn stop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // A callback may hold the last handle of the log; its thread ends after it.
            if thread.thread().id() != std::thread::current().id() {
                // A panic was reported by the hook already, and has poisoned the log.
                let _ = thread.join();
            }
        }
        self.shared.dismiss_callbacks();
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.stop();
    }
}
