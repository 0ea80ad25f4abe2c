//! Which replicas are on this node, and which never will be again. Durable, apart from what they hold.
//!
//! A replica that was a voter and lost what it promised must not vote again under its number: with an empty log it could help a leader that was left behind to a
//! majority, and what others have committed would be lost. So a replica is written down before anything of it is made, and before anything
//! of it is erased its number is: no replica of that group with this number or a smaller one is ever made here again. Numbers only grow, so
//! one number for each group is enough.
//!
//! | step | after a crash then |
//! |---|---|
//! | [`ReplicaTable::hold`] is durable | the replica is opened, empty if nothing was made yet |
//! | its log and engine exist | the replica is opened |
//! | [`ReplicaTable::erase`] is durable | what is left of it is removed at the start, and it is not opened |
//!
//! # On disk
//!
//! `replicas.json` (`util/fs/sealed`): an object with `magic` (`kvstore-replicas`), `version` (1), `held` and `erased`, both from a group's number to a replica's.
//!
//! Called by `node.rs`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::planted::{self, Bug};
use super::types::{GroupId, ReplicaId};
use crate::util::fs::{FileSystem, read_sealed, write_sealed};

const FILE: &str = "replicas.json";
const MAGIC: &str = "kvstore-replicas";
const VERSION: u32 = 1;

/// Bytes of the file at most: some tens for each group.
const FILE_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    magic: String,
    version: u32,
    held: BTreeMap<u32, ReplicaId>,
    erased: BTreeMap<u32, ReplicaId>,
}

/// See the [module](self).
pub(super) struct ReplicaTable {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    record: Record,
}

impl ReplicaTable {
    /// Reads the table in `directory`, which is empty if there is none.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a damaged one, with its file; the disk's otherwise.
    pub(super) fn open(fs: Arc<dyn FileSystem>, directory: PathBuf) -> io::Result<Self> {
        let path = directory.join(FILE);
        let damaged = |detail: &dyn std::fmt::Display| {
            let what = format!("{} is damaged: {detail}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let record = match read_sealed(&*fs, &path, FILE_BYTES_MAX) {
            Ok(None) => Record { magic: MAGIC.to_owned(), version: VERSION, ..Record::default() },
            Ok(Some(text)) => serde_json::from_slice(&text).map_err(|error| damaged(&error))?,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(damaged(&error));
            }
            Err(error) => return Err(error),
        };
        if record.magic != MAGIC || record.version != VERSION {
            let version = record.version;
            return Err(damaged(&format!("version {version}, this program reads {VERSION}")));
        }
        Ok(Self { fs, directory, record })
    }

    /// The replicas that are here, by group.
    pub(super) fn held(&self) -> BTreeMap<GroupId, ReplicaId> {
        self.record.held.iter().map(|(group, replica)| (GroupId(*group), *replica)).collect()
    }

    /// The replica of `group` that is here.
    pub(super) fn replica(&self, group: GroupId) -> Option<ReplicaId> {
        self.record.held.get(&group.0).copied()
    }

    /// Whether `replica` was erased here, or may have been.
    pub(super) fn was_erased(&self, group: GroupId, replica: ReplicaId) -> bool {
        if planted::is(Bug::NoTombstone) {
            return false;
        }
        self.record.erased.get(&group.0).is_some_and(|last| replica <= *last)
    }

    /// Notes durably that `replica` of `group` is here. Of a group whose other replica is here, or one that was erased, it must not be.
    ///
    /// # Errors
    ///
    /// The disk's; nothing is noted then.
    pub(super) fn hold(&mut self, group: GroupId, replica: ReplicaId) -> io::Result<()> {
        assert!(!self.was_erased(group, replica), "{group}: replica {replica} was erased");
        assert!(
            self.replica(group).is_none_or(|held| held == replica),
            "{group} has another replica here"
        );
        let mut record = self.record.clone();
        record.held.insert(group.0, replica);
        self.store(record)
    }

    /// Notes durably that the replica of `group` that is here is erased.
    ///
    /// # Errors
    ///
    /// The disk's; it is here as before then.
    pub(super) fn erase(&mut self, group: GroupId) -> io::Result<()> {
        let mut record = self.record.clone();
        if let Some(replica) = record.held.remove(&group.0) {
            record.erased.insert(group.0, replica);
        }
        self.store(record)
    }

    fn store(&mut self, record: Record) -> io::Result<()> {
        if record != self.record {
            let text = serde_json::to_vec(&record)?;
            write_sealed(&*self.fs, &self.directory, FILE, text)?;
            self.record = record;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::fs::sim::SimFileSystem;

    fn open(fs: &SimFileSystem) -> io::Result<ReplicaTable> {
        ReplicaTable::open(Arc::new(fs.clone()), "/table".into())
    }

    fn world() -> SimFileSystem {
        let fs = SimFileSystem::new(7);
        fs.create_dir_all("/table".as_ref()).expect("a directory");
        fs
    }

    #[test]
    fn what_is_held_and_what_was_erased_survives_a_power_cut() {
        let fs = world();
        let (first, second) = (GroupId(3), GroupId(u32::MAX));
        let mut table = open(&fs).expect("an empty one");
        table.hold(first, 12).expect("room");
        table.hold(second, 1).expect("room");
        let fs = fs.restart(1);
        let mut table = open(&fs).expect("the same");
        assert_eq!(table.held(), BTreeMap::from([(first, 12), (second, 1)]));
        table.erase(first).expect("room");
        let fs = fs.restart(2);
        let mut table = open(&fs).expect("the same");
        assert_eq!(table.held(), BTreeMap::from([(second, 1)]));
        assert!(table.was_erased(first, 12) && table.was_erased(first, 7));
        assert!(!table.was_erased(first, 13) && !table.was_erased(second, 1));
        table.hold(first, 13).expect("a later one may come");
        assert_eq!(open(&fs).expect("the same").replica(first), Some(13));
    }

    #[test]
    fn every_damaged_byte_is_found() {
        let fs = world();
        open(&fs).expect("an empty one").hold(GroupId(0), 5).expect("room");
        let path = std::path::Path::new("/table").join(FILE);
        let whole = crate::util::fs::read_file(&fs, &path, 1 << 20).expect("it was written");
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 1;
            crate::util::fs::replace_file(&fs, "/table".as_ref(), FILE, &damaged).expect("room");
            let error = open(&fs).map(|_| ()).expect_err("damaged");
            assert!(error.to_string().contains(FILE), "byte {position}: {error}");
        }
    }
}
