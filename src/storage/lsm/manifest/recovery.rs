//! Opening a manifest: reading it, checking that its tables are there, and only then clearing the torn tail and noting what
//! it does not name, for a later removal. What is refused stays as it was found.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::record::{Records, parse};
use super::{CURRENT, Current, Manifest, current_text, edit};
use crate::storage::lsm::files::{FileNumber, TableDirectory};
use crate::storage::lsm::table::TableMetadata;
use crate::storage::lsm::version::{AddedTable, Flushed, Version, VersionEdit};
use crate::storage::{Error, Result};
use crate::util::fs::read_file;

/// Larger files are refused before they are read.
const MANIFEST_BYTES_MAX: u64 = 4 << 30;

/// What `CURRENT` may have at most.
const CURRENT_BYTES_MAX: u64 = 64;

/// Ends of the names of files that are ours to remove.
const TABLE: &str = "sst";
const MANIFEST: &str = "manifest";
const TEMPORARY: &str = ".tmp";

impl Manifest {
    /// Opens the manifest of the directory. Files that it does not name are orphans from now on
    /// ([`TableDirectory::remove_orphans`]).
    pub(crate) fn open(directory: &Arc<TableDirectory>) -> Result<Self> {
        let Found { number, version, snapshot_end, end, torn } = find(directory)?;
        let path = directory.path().join(number.manifest_name());
        let names = list(directory)?;
        check_tables(directory, &version, &names)?;

        let io = |operation| {
            let path = &path;
            move |error| Error::io(operation, path, error)
        };
        let file = directory.fs().open_write(&path).map_err(io("open"))?;
        if torn > 0 {
            // Cleared, not cut: the size shows that nothing is missing.
            file.write_at(&vec![0; torn], end).map_err(io("write"))?;
        }
        file.sync_data().map_err(io("sync"))?;
        directory.sync()?;
        note_orphans(directory, number, &version, names);
        // Zeros that follow need not be reserved space: a copy of the file may have holes.
        let current = Current { file, number, snapshot_end, end, reserved: end };
        Ok(Self::new(directory, version, current))
    }
}

/// What the manifest in use says, which is not changed.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its number.
    pub(crate) number: FileNumber,
    /// The tree. Whether its tables are there is not known.
    pub(crate) version: Version,
    /// Where its snapshot ends.
    pub(crate) snapshot_end: u64,
    /// Where its last edit ends.
    pub(crate) end: u64,
    /// Bytes that follow and that a crash has torn: the next opening clears them.
    pub(crate) torn: usize,
}

/// Reads and checks the manifest in use.
pub(crate) fn find(directory: &Arc<TableDirectory>) -> Result<Found> {
    let number = read_current(directory)?;
    let path = directory.path().join(number.manifest_name());
    let bytes = read(directory, &number.manifest_name(), MANIFEST_BYTES_MAX)?;
    let corruption = |(at, why): (usize, String)| Error::corruption(&path, at as u64, why);
    let records = parse(&bytes, number, directory.engine()).map_err(corruption)?;
    let version = replay(&records, directory).map_err(corruption)?;
    let (snapshot_end, end) = (records.snapshot_end as u64, records.end as u64);
    Ok(Found { number, version, snapshot_end, end, torn: records.torn })
}

/// The number of the manifest in use.
fn read_current(directory: &TableDirectory) -> Result<FileNumber> {
    let bytes = read(directory, CURRENT, CURRENT_BYTES_MAX)?;
    let number = std::str::from_utf8(&bytes).ok().and_then(|text| {
        let (name, _) = text.split_once(' ')?;
        FileNumber::parse(name, MANIFEST).filter(|&number| current_text(number) == text)
    });
    number.ok_or_else(|| {
        let path = directory.path().join(CURRENT);
        Error::corruption(path, 0, "this is not the name of a manifest and its checksum")
    })
}

/// A whole file. That it is missing is damage.
fn read(directory: &TableDirectory, name: &str, bytes_max: u64) -> Result<Vec<u8>> {
    let path = directory.path().join(name);
    read_file(directory.fs(), &path, bytes_max).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::corruption(path, 0, "the file is missing"),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            Error::corruption(path, 0, error.to_string())
        }
        _ => Error::io("read", path, error),
    })
}

/// The version that the edits make, one after the other.
fn replay(
    records: &Records<'_>,
    directory: &Arc<TableDirectory>,
) -> Result<Version, (usize, String)> {
    let mut tree = Tree::default();
    for &(at, body) in &records.edits {
        let edit = edit::decode(body).map_err(|why| (at, why))?;
        tree.apply(edit).map_err(|why| (at, why))?;
    }
    // Overlaps show only now, and then it cannot be said which edit made them.
    let (version, _) =
        Version::default().apply(&tree.into_edit(), directory).map_err(|why| (records.end, why))?;
    Ok(version)
}

/// What edits add up to. Unlike a version, it costs nothing to change.
#[derive(Default)]
struct Tree {
    tables: BTreeMap<FileNumber, (usize, TableMetadata)>,
    flushed: Flushed,
}

impl Tree {
    fn apply(&mut self, edit: VersionEdit) -> Result<(), String> {
        for (level, number) in edit.removed {
            if self.tables.get(&number).is_none_or(|&(at, _)| at != level) {
                return Err(format!("table {} is not in level {level}", number.0));
            }
            self.tables.remove(&number);
        }
        for AddedTable { level, number, metadata } in edit.added {
            if self.tables.insert(number, (level, metadata)).is_some() {
                return Err(format!("table {} is there twice", number.0));
            }
        }
        self.flushed = edit.flushed.unwrap_or(self.flushed);
        Ok(())
    }

    fn into_edit(self) -> VersionEdit {
        let tables = self.tables.into_iter();
        let added =
            tables.map(|(number, (level, metadata))| AddedTable { level, number, metadata });
        VersionEdit { added: added.collect(), removed: Vec::new(), flushed: Some(self.flushed) }
    }
}

fn list(directory: &TableDirectory) -> Result<Vec<String>> {
    let path = directory.path();
    directory.fs().list(path).map_err(|error| Error::io("list", path, error))
}

fn check_tables(directory: &TableDirectory, version: &Version, names: &[String]) -> Result<()> {
    let names: BTreeSet<_> = names.iter().map(String::as_str).collect();
    for (level, table) in version.tables() {
        if !names.contains(table.number().table_name().as_str()) {
            let path = directory.table_path(table.number());
            let why = format!("the table is missing, it belongs to level {level}");
            return Err(Error::corruption(path, 0, why));
        }
    }
    Ok(())
}

/// Tables and manifests that are not in use, and what was being replaced, are orphans. Everything else is not ours.
fn note_orphans(
    directory: &TableDirectory,
    current: FileNumber,
    version: &Version,
    names: Vec<String>,
) {
    let tables: BTreeSet<_> = version.tables().map(|(_, table)| table.number()).collect();
    directory.skip(current);
    let is_orphan = |name: &String| {
        let table = FileNumber::parse(name, TABLE);
        let manifest = FileNumber::parse(name, MANIFEST);
        // Also numbers of orphans: their removal may be undone by a crash, and then they must not be in the way.
        table.into_iter().chain(manifest).for_each(|number| directory.skip(number));
        table.is_some_and(|number| !tables.contains(&number))
            || manifest.is_some_and(|number| number != current)
            || name.ends_with(TEMPORARY)
    };
    directory.set_orphans(names.into_iter().filter(is_orphan).collect());
}
