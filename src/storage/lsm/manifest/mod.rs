//! The manifest: which tables are in which level, and up to where they hold what was written. It makes a change of the
//! tree one step that has happened, or not, also across a crash.
//!
//! | file | what |
//! |---|---|
//! | [`record`] | the bytes of the file, damage and torn tails |
//! | [`edit`] | the bytes of an edit |
//! | [`recovery`] | opening: reading, checking, removing orphans |
//!
//! # Files
//!
//! `NNNNNN.manifest` begins with a snapshot of the tree and goes on with edits. `CURRENT` says which manifest it is:
//! `NNNNNN.manifest`, a blank, the xxh3-64 of that name in 16 hexadecimal digits, a line feed. A manifest that has grown
//! to four times its snapshot is followed by a new one.
//!
//! # Order of things
//!
//! * **Commit**: the tables were synced by whoever wrote them; their names are synced; space for the edit is reserved,
//!   the edit written and synced. Now it has happened. Only then readers get the new version, and files go.
//! * **New manifest**: it is written and synced, then its name, then `CURRENT` is replaced. The edit that was to be
//!   committed is in the snapshot, so this too is one step.
//! * **Opening**: what is read is synced before anything is done because of it. A killed process may have left an edit
//!   that is in the page cache only; were orphans removed because of it and it was lost after all, so would be their
//!   data. Orphans stay until the log has been replayed, and so has shown that the manifest is not an older one.
//!
//! # Failures
//!
//! A full disk is found when space is reserved, before anything was written: [`Error::DiskFull`], nothing happened. Nor
//! has it when there is no handle to sync the names of tables with: [`Error::NoHandles`]. A new manifest that could not be
//! made is made later; until then the one there is grows. Any other failure leaves open whether the edit survives:
//! [`Error::Poisoned`] from then on, and neither the tables before nor those after the edit may be removed.

mod edit;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod record;
mod recovery;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

pub(super) use self::edit::{decode as decode_edit, encode as encode_edit};
use self::record::{HEADER_BYTES, Header, MARK_BYTES, RESERVE_BYTES, encode_header, put};
pub(super) use self::recovery::find;
use super::files::{FileNumber, TableDirectory};
use super::shared::{changed_nothing, name_shortage};
use super::version::{Version, VersionEdit};
use crate::storage::{Error, Result};
use crate::util::fs::{File, is_disk_full, replace_file};

/// Says which manifest it is.
pub(super) const CURRENT: &str = "CURRENT";

/// A smaller manifest is not followed by a new one. Small in tests, to be reached.
const REWRITE_BYTES_MIN: u64 = if cfg!(test) { 1 << 10 } else { 64 << 10 };

/// A manifest is followed by a new one when it is so many times as large as its snapshot.
const REWRITE_FACTOR: u64 = 4;

/// Tables in one record of a snapshot.
const SNAPSHOT_TABLES: usize = 1_000;

/// The manifest of an open engine. See the [module](self).
#[derive(Debug)]
pub(crate) struct Manifest {
    directory: Arc<TableDirectory>,
    version: Arc<Version>,
    current: Current,
    rewrite_bytes_min: u64,
    /// What failed first.
    poison: Option<String>,
}

/// The file in use.
#[derive(Debug)]
struct Current {
    file: Arc<dyn File>,
    number: FileNumber,
    snapshot_end: u64,
    /// Where the next record goes.
    end: u64,
    /// Space is reserved up to here.
    reserved: u64,
}

impl Manifest {
    /// Writes the first manifest of the directory. `version` is empty for a new engine; that of a checkpoint has tables
    /// that are in the directory already, synced.
    pub(crate) fn create(directory: &Arc<TableDirectory>, version: &Version) -> Result<Self> {
        let snapshot = version.snapshot();
        let (version, _) = Version::default().apply(&snapshot, directory).expect("it is a version");
        if let Some(number) = version.tables().map(|(_, table)| table.number()).max() {
            directory.skip(number);
        }
        let current = Current::create(directory, &version)?;
        current.switch(directory)?;
        Ok(Self::new(directory, version, current))
    }

    fn new(directory: &Arc<TableDirectory>, version: Version, current: Current) -> Self {
        Self {
            directory: Arc::clone(directory),
            version: Arc::new(version),
            current,
            rewrite_bytes_min: REWRITE_BYTES_MIN,
            poison: None,
        }
    }

    /// The version as of the last commit.
    pub(crate) const fn version(&self) -> &Arc<Version> {
        &self.version
    }

    /// What ended writing, if anything did.
    pub(crate) fn poison(&self) -> Option<&str> {
        self.poison.as_deref()
    }

    /// Makes the edit durable and returns the next version. The tables it adds must be synced; their names are made
    /// durable here. [`Error::DiskFull`], [`Error::NoHandles`] and [`Error::Invalid`] (an edit that does not fit): nothing
    /// happened.
    pub(crate) fn commit(&mut self, edit: &VersionEdit) -> Result<Arc<Version>> {
        if let Some(cause) = &self.poison {
            return Err(Error::Poisoned { cause: cause.clone() });
        }
        let (version, removed) = self.version.apply(edit, &self.directory).map_err(|why| {
            let path = self.directory.path().display();
            Error::Invalid(format!("an edit that does not fit the tree in {path}: {why}"))
        })?;
        if let Err(error) = self.write(&version, edit) {
            if !changed_nothing(&error) {
                self.poison = Some(error.to_string());
            }
            return Err(error);
        }
        self.version = Arc::new(version);
        // Only now: before, nothing was certain.
        for table in removed {
            table.set_obsolete();
        }
        Ok(Arc::clone(&self.version))
    }

    fn write(&mut self, version: &Version, edit: &VersionEdit) -> Result<()> {
        if self.is_large() {
            let next = Current::create(&self.directory, version);
            match next.and_then(|next| self.switch(next)) {
                // The edit may still fit into the one there is.
                Err(error) if changed_nothing(&error) => {}
                switched => return switched,
            }
        }
        if edit.has_new_tables() {
            self.directory.sync()?;
        }
        let path = self.directory.path().join(self.current.number.manifest_name());
        self.current.append(&path, edit)?;
        if let Err(error) = self.current.mark(&path) {
            // The edit is durable, so the commit has not failed. But it is the last one.
            self.poison = Some(error.to_string());
        }
        Ok(())
    }

    fn is_large(&self) -> bool {
        let large = self.current.snapshot_end * REWRITE_FACTOR;
        self.current.end > large.max(self.rewrite_bytes_min)
    }

    /// Goes on in another file.
    fn switch(&mut self, next: Current) -> Result<()> {
        next.switch(&self.directory).inspect_err(|error| {
            if changed_nothing(error) {
                let _ = self.directory.remove(&next.number.manifest_name());
            }
        })?;
        let last = std::mem::replace(&mut self.current, next);
        // Should this fail, it is an orphan for the next opening.
        let _ = self.directory.remove(&last.number.manifest_name());
        Ok(())
    }
}

impl Current {
    /// Writes and syncs a new manifest that begins with `version`. It is not in use yet. Nothing is left of it after
    /// an error, as far as that is possible.
    fn create(directory: &TableDirectory, version: &Version) -> Result<Self> {
        let (number, _) = directory.allocate();
        let name = number.manifest_name();
        let created = Self::create_file(directory, number, &directory.path().join(&name), version);
        if created.is_err() {
            let _ = directory.remove(&name);
        }
        created
    }

    fn create_file(
        directory: &TableDirectory,
        number: FileNumber,
        path: &Path,
        version: &Version,
    ) -> Result<Self> {
        let bytes = encode_snapshot(number, version, directory.engine());
        let failed = |operation| move |error| write_error(operation, path, error);
        let file = directory.fs().create(path).map_err(failed("create"))?;
        let reserved = (bytes.len() as u64).next_multiple_of(RESERVE_BYTES);
        file.allocate(reserved).map_err(failed("reserve"))?;
        file.write_at(&bytes, 0).map_err(failed("write"))?;
        file.sync_data().map_err(failed("sync"))?;
        let end = bytes.len() as u64;
        Ok(Self { file, number, snapshot_end: end, end, reserved })
    }

    /// Puts it into use.
    fn switch(&self, directory: &TableDirectory) -> Result<()> {
        // The names of the manifest and of new tables: `CURRENT` must not be durable before them.
        directory.sync()?;
        let text = current_text(self.number);
        replace_file(directory.fs(), directory.path(), CURRENT, text.as_bytes())
            .map_err(|error| write_error("replace", &directory.path().join(CURRENT), error))
    }

    fn append(&mut self, path: &Path, edit: &VersionEdit) -> Result<()> {
        let mut body = Vec::new();
        edit::encode(edit, &mut body);
        let mut bytes = Vec::new();
        put(&mut bytes, self.number, self.end, &body);
        let end = self.end + bytes.len() as u64;
        self.reserve(path, end + MARK_BYTES as u64)?;
        self.file.write_at(&bytes, self.end).map_err(|error| Error::io("write", path, error))?;
        self.file.sync_data().map_err(|error| Error::io("sync", path, error))?;
        self.end = end;
        Ok(())
    }

    /// Says that all before it is synced.
    fn mark(&mut self, path: &Path) -> Result<()> {
        let mut bytes = Vec::new();
        put(&mut bytes, self.number, self.end, &[]);
        self.file.write_at(&bytes, self.end).map_err(|error| Error::io("write", path, error))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn reserve(&mut self, path: &Path, end: u64) -> Result<()> {
        if end > self.reserved {
            let reserved = end.next_multiple_of(RESERVE_BYTES);
            self.file.allocate(reserved).map_err(|error| write_error("reserve", path, error))?;
            self.reserved = reserved;
        }
        Ok(())
    }
}

/// A whole manifest that holds nothing but `version`.
fn encode_snapshot(number: FileNumber, version: &Version, engine: u16) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    let VersionEdit { added, flushed, .. } = version.snapshot();
    let mut record = |edit: &VersionEdit| {
        let mut body = Vec::new();
        edit::encode(edit, &mut body);
        put(&mut bytes, number, 0, &body);
    };
    record(&VersionEdit { flushed, ..VersionEdit::default() });
    for added in added.chunks(SNAPSHOT_TABLES) {
        record(&VersionEdit { added: added.to_vec(), ..VersionEdit::default() });
    }
    let snapshot_end = bytes.len() as u64;
    let made_steps = u16::try_from(snapshot_end.div_ceil(RESERVE_BYTES)).unwrap_or(u16::MAX);
    let header = encode_header(number, Header { engine, made_steps, snapshot_end });
    bytes[..HEADER_BYTES].copy_from_slice(&header);
    bytes
}

/// What `CURRENT` holds.
fn current_text(number: FileNumber) -> String {
    let name = number.manifest_name();
    format!("{name} {:016x}\n", xxh3_64(name.as_bytes()))
}

fn write_error(operation: &'static str, path: &Path, error: io::Error) -> Error {
    if is_disk_full(&error) {
        return Error::DiskFull { path: path.to_owned() };
    }
    name_shortage(Error::io(operation, path, error))
}
