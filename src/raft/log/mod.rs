//! The Raft log: all groups of a node in one wal, one fdatasync for whatever waits.
//!
//! The Raft log is the write-ahead log of the engines: what an engine has not flushed is replayed from here. So what this
//! file promises is what the database promises.
//!
//! Callers: openraft, through the traits in `storage.rs`; the state machine ([`GroupLog::durable`],
//! [`GroupLog::set_generation`]); the node, which opens, watches and closes.
//!
//! # Promises
//!
//! * **Appended entries can be read at once**, and their callback is called once they are on stable storage, or with the
//!   error if they never will be. Callbacks of a group are called in the order of its writes: when one says that all went
//!   well, every earlier entry, vote and truncation of the group is durable.
//! * **Votes, truncations, the generation of the engine and the removal of a group are durable when the call returns.**
//!   A truncation that came back after a crash could contradict an engine that has flushed what replaced the entries.
//! * **What is committed** is written without a sync, in the same order, and never claims more than there is.
//! * **Purge** removes what is before, also beyond the last entry, and gives the segments back once a record that says so is
//!   on stable storage.
//! * **No hole.** An append that would leave one is refused; so is, at opening, a log of which a record is missing, or does
//!   not fit those before it, or cannot be read, with file and offset.
//! * **Bounded**: in memory are some 30 bytes for each record, and the newest entries up to [`LogOptions::cache_bytes`], of groups that are written to.
//!   Reads of openraft bring at most [`READ_BYTES_MAX`] at once, but for a single larger entry.
//!
//! # Life of an entry
//!
//! `append` encodes the entries into records, appends them to the wal under the group's lock, notes in the `index` which
//! record has which, keeps the entries in the `tail`, and registers the callback; nothing was written to disk. The wal's
//! thread syncs for all groups at once and calls back. Followers and the state machine read from the tail; who lags, from
//! the wal, record by record. When a snapshot covers it, openraft purges it: a state record says so, and once that is durable
//! the group releases what lies before. A segment goes when no group needs it.
//!
//! A group that is idle keeps its oldest segment, and with it all later ones. If it has no entries, its state is written
//! again in a newer one (`renew_idle`). If it has, [`LogStore::laggard`] names it, and the node makes it take a snapshot and
//! purge.
//!
//! # Why an async task may call this
//!
//! Nothing here waits for an fdatasync on a thread of the runtime; what must be durable is waited for by callback. What
//! remains, and why it is short:
//!
//! * `Wal::append` copies into a buffer in memory. It writes to the page cache when that buffer is full
//!   ([`LogOptions::buffer_bytes_max`], 16 MiB: milliseconds), and makes a segment if the thread that makes them ahead has
//!   not kept up, which takes 64 MiB in the time of one fdatasync. Both mean that the disk is behind: then it is right that
//!   the groups wait.
//! * `Wal::on_level` waits while 65,536 callbacks do. A group has one for each append that was not synced yet, and openraft
//!   joins appends that queue: it would take that many appends within one sync, and one sync ends it.
//! * A read that the tail does not serve reads the disk, under [`blocking`](super::blocking).
//!
//! # Failures
//!
//! | what fails | what happens |
//! |---|---|
//! | write or sync | every callback that waits gets the error, every later write fails; reads go on. The node is to stop |
//! | no room for a segment | the append, vote, truncation or purge fails with `StorageFull`; an append of several records may have left some of its entries, without a callback, as a crash could |
//! | a read | that read fails |
//! | a record is damaged, missing or does not follow | opening, or the read, is refused with file and offset |
//!
//! # Files
//!
//! | what | where |
//! |---|---|
//! | bytes of the records | `record` |
//! | which record has which entry | `index` |
//! | a group rebuilt from its records | `replay` |
//! | the newest entries in memory | `tail` |
//! | writing | `group` |
//! | reading | `read` |
//! | openraft's traits | `storage` |
//!
//! Lock order: `groups`, then the state of one group, then the wal's. No two groups are locked at once.

mod group;
mod index;
mod read;
mod record;
mod replay;
mod storage;
mod tail;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use parking_lot::RwLock;

pub use self::group::GroupLog;
use self::group::{Group, GroupState};
pub use self::read::READ_BYTES_MAX;
use self::record::decode;
use self::replay::Replay;
use super::planted::{self, Bug};
use super::types::GroupId;
use crate::util::fs::FileSystem;
use crate::wal::{self, Background, Level, Owner, Position, RecordRef, Wal};

/// Settings of a log.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Size of a segment of the wal, in bytes.
    pub segment_bytes: u32,
    /// Most bytes that wait to be written.
    pub buffer_bytes_max: usize,
    /// Most bytes of entries that are kept in memory, of all groups together.
    pub cache_bytes: usize,
    /// Who syncs: threads of the wal, or the caller of [`LogStore::drive`] and [`LogStore::maintain`].
    pub background: Background,
    /// Random, another one for each opening: see [`wal::Options::salt_seed`].
    pub salt_seed: u64,
}

impl LogOptions {
    /// The defaults: segments of 64 MiB, a buffer of 16 MiB, 64 MiB of entries, own threads.
    pub const fn new(salt_seed: u64) -> Self {
        let wal::Options { segment_bytes, buffer_bytes_max, background, .. } =
            wal::Options::new(salt_seed);
        Self { segment_bytes, buffer_bytes_max, cache_bytes: 64 << 20, background, salt_seed }
    }

    const fn wal(&self) -> wal::Options {
        wal::Options {
            segment_bytes: self.segment_bytes,
            buffer_bytes_max: self.buffer_bytes_max,
            background: self.background,
            ..wal::Options::new(self.salt_seed)
        }
    }
}

/// The log of all groups of a node. See the [module](self).
#[derive(Debug)]
pub struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    wal: Wal,
    options: LogOptions,
    groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    /// Bytes of the tails of all groups.
    cached_bytes: AtomicUsize,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("dir", &self.wal.dir()).finish_non_exhaustive()
    }
}

/// How things stand, for operators.
#[derive(Debug, Clone)]
pub struct LogStatus {
    /// Bytes of entries in memory.
    pub cached_bytes: usize,
    /// Groups with anything in the log.
    pub groups: Vec<GroupLogStatus>,
    /// The wal below: bytes on disk, counters, why it takes no more writes.
    pub wal: wal::Status,
}

/// How the log of one group stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLogStatus {
    /// The group.
    pub group: GroupId,
    /// Index of the first entry, or of the next if there is none.
    pub first: u64,
    /// Index of the next entry.
    pub end: u64,
    /// Bytes of the records with entries that were not purged.
    pub bytes: u64,
    /// How many segments have begun since the oldest record that the group needs.
    pub segments_held: u32,
}

impl LogStore {
    /// Opens the log in `dir`, or makes an empty one: reads all of it once. Blocks.
    ///
    /// # Errors
    ///
    /// Of files, with the kind the system gave; `WouldBlock` when another process has the log; `InvalidData` for damage, with
    /// file and offset.
    pub fn open(fs: Arc<dyn FileSystem>, dir: PathBuf, options: LogOptions) -> io::Result<Self> {
        let mut replays = BTreeMap::<GroupId, Replay>::new();
        let visit = |record: RecordRef<'_>| replay(&dir, &mut replays, record);
        let (wal, _) = Wal::open(fs, dir.clone(), options.wal(), visit).map_err(io_error)?;
        let mut groups = BTreeMap::new();
        for (id, mut replay) in replays {
            let at = replay.last.unwrap_or_default();
            let index = replay.finish().map_err(|detail| damage(&dir, at, id, &detail));
            let index = index.map_err(io_error)?;
            let Replay { hard, state_at, last, .. } = replay;
            let state = GroupState { hard, index, state_at, last, ..GroupState::default() };
            match state.needed() {
                Some(needed) => wal.release(Owner(id.0.into()), needed),
                None => wal.release_all(Owner(id.0.into())),
            }
            groups.insert(id, Group::new(id, state));
        }
        let (groups, cached_bytes) = (RwLock::new(groups), AtomicUsize::new(0));
        Ok(Self { shared: Arc::new(Shared { wal, options, groups, cached_bytes }) })
    }

    /// The groups that have anything in the log.
    pub fn groups(&self) -> Vec<GroupId> {
        let groups = self.shared.groups.read();
        let found = groups.values().filter(|group| group.state.lock().needed().is_some());
        found.map(|group| group.id).collect()
    }

    /// The log of `group`, which is pristine if there was none.
    pub fn group(&self, group: GroupId) -> GroupLog {
        let mut groups = self.shared.groups.write();
        let fresh = || Group::new(group, GroupState::default());
        let group = Arc::clone(groups.entry(group).or_insert_with(fresh));
        GroupLog { shared: Arc::clone(&self.shared), group }
    }

    /// Removes all that a group has in the log, durably: its replica was removed from this node. Handles that are left
    /// refuse to write. The group may begin anew, with another replica.
    pub async fn forget(&self, group: GroupId) -> io::Result<()> {
        let log = self.group(group);
        log.forget().await?;
        self.shared.groups.write().retain(|_, found| !Arc::ptr_eq(found, &log.group));
        Ok(())
    }

    /// The group that keeps most of the log from being removed, if that is larger than `bytes_max` and removing anything
    /// would help: it is to take a snapshot and purge.
    pub fn laggard(&self, bytes_max: u64) -> Option<GroupId> {
        let wal = self.shared.wal.status();
        if wal.disk_bytes <= bytes_max {
            return None;
        }
        let groups = self.shared.groups.read();
        let oldest = groups.values().filter_map(|group| {
            let oldest = group.state.lock().index.oldest()?;
            (oldest.segment() < wal.end.segment()).then_some((oldest, group.id))
        });
        Some(oldest.min()?.1)
    }

    /// Has groups that nobody writes to let go of their entries in memory. Called about once a second.
    pub fn trim(&self) {
        for group in self.shared.groups.read().values() {
            let mut state = group.state.lock();
            state.tail.look();
            self.shared.count_tail(group, &state);
        }
    }

    /// How things stand.
    pub fn status(&self) -> LogStatus {
        let wal = self.shared.wal.status();
        let status = |group: &Arc<Group>| {
            let state = group.state.lock();
            Some(GroupLogStatus {
                group: group.id,
                first: state.index.first(),
                end: state.index.end(),
                bytes: state.index.bytes(),
                segments_held: wal.end.segment().saturating_sub(state.needed()?.segment()),
            })
        };
        let groups = self.shared.groups.read().values().filter_map(status).collect();
        let cached_bytes = self.shared.cached_bytes.load(std::sync::atomic::Ordering::Relaxed);
        LogStatus { cached_bytes, groups, wal }
    }

    /// Syncs if anybody waits for it, and calls the callbacks. Returns whether there was any. With
    /// [`Background::Caller`] somebody has to.
    pub fn drive(&self) -> bool {
        self.shared.wal.drive()
    }

    /// Makes segments ahead and removes those that nobody needs. With [`Background::Caller`] somebody has to.
    pub fn maintain(&self) -> io::Result<()> {
        self.shared.wal.maintain().map_err(io_error)
    }

    /// Makes everything durable. If nobody has a handle any more, the end of the log is also vouched for, so that damage to
    /// it is found at the next opening, and the directory is free.
    pub fn close(self) -> io::Result<()> {
        match Arc::try_unwrap(self.shared) {
            Ok(shared) => shared.wal.close(),
            Err(shared) => shared.wal.barrier(Level::Sync),
        }
        .map_err(io_error)
    }
}

/// What this log calls durable.
fn durable_level() -> Level {
    if planted::is(Bug::SkippedSync) { Level::Buffered } else { Level::Sync }
}

/// Takes a record of the log in `dir`.
fn replay(
    dir: &Path,
    groups: &mut BTreeMap<GroupId, Replay>,
    record: RecordRef<'_>,
) -> wal::Result<()> {
    let RecordRef { position, owner, kind, body } = record;
    let Ok(id) = u32::try_from(owner.0).map(GroupId) else {
        let detail = format!("a record of owner {}, which is no group", owner.0);
        return Err(wal::Error::Corruption {
            file: position.file_in(dir),
            offset: position.offset(),
            detail,
        });
    };
    let taken = decode(kind, &Bytes::copy_from_slice(body))
        .and_then(|record| groups.entry(id).or_default().take(position, record, body.len() as u64));
    taken.map_err(|detail| damage(dir, position, id, &detail))
}

/// What is wrong with the record of `group` at `position`.
fn damage(dir: &Path, position: Position, group: GroupId, detail: &str) -> wal::Error {
    wal::Error::Corruption {
        file: position.file_in(dir),
        offset: position.offset(),
        detail: format!("{group}: {detail}"),
    }
}

/// As openraft has errors; the source is kept.
fn io_error(error: wal::Error) -> io::Error {
    let kind = match &error {
        wal::Error::Corruption { .. } => io::ErrorKind::InvalidData,
        wal::Error::Io { source, .. } => source.kind(),
        // Whatever it was at first, also a full disk: nothing is written any more.
        wal::Error::Poisoned { .. } => io::ErrorKind::Other,
        wal::Error::DiskFull { .. } => io::ErrorKind::StorageFull,
        wal::Error::Invalid(_) => io::ErrorKind::InvalidInput,
        wal::Error::Locked { .. } => io::ErrorKind::WouldBlock,
    };
    io::Error::new(kind, error)
}
