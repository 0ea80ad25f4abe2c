//! The manifest on the simulated disk. One file for each property; here is the story that all of them tell: an engine
//! that flushes, moves, merges and removes tables.

mod crash;
mod damage;
mod faults;
mod life;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::storage::lsm::cache::BlockCache;
use crate::storage::lsm::open_files::OpenFiles;
use crate::storage::lsm::table::{Properties, TableMetadata, UpperBound};
use crate::storage::lsm::version::{AddedTable, Flushed};
use crate::storage::{Result, Seqno};
use crate::util::fs::FileSystem;
use crate::util::fs::sim::SimFileSystem;
use crate::util::time::Timestamp;
use crate::wal::Position;

const DIR: &str = "/engine";

fn new_disk(seed: u64) -> SimFileSystem {
    let fs = SimFileSystem::new(seed);
    fs.create_dir_all(Path::new(DIR)).expect("made");
    fs.sync_dir(Path::new("/")).expect("synced");
    fs
}

fn directory(fs: &SimFileSystem) -> Arc<TableDirectory> {
    TableDirectory::new(OpenFiles::new(Arc::new(fs.clone()), 8), DIR.into(), BlockCache::new(0), 7)
}

fn open(fs: &SimFileSystem) -> Result<Manifest> {
    let directory = directory(fs);
    let manifest = Manifest::open(&directory)?;
    directory.remove_orphans()?;
    Ok(manifest)
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn names(fs: &SimFileSystem) -> Vec<String> {
    fs.list(Path::new(DIR)).expect("listed")
}

/// The files that there should be, no more and no less.
fn names_of(manifest: &Manifest) -> Vec<String> {
    let tables = manifest.version().tables().map(|(_, table)| table.number().table_name());
    let mut names: Vec<_> = tables.collect();
    names.extend([CURRENT.to_owned(), manifest.current.number.manifest_name()]);
    names.sort();
    names
}

/// What tells a state of the tree from another one.
fn state(manifest: &Manifest) -> VersionEdit {
    let mut state = manifest.version().snapshot();
    state.added.sort_by_key(|table| table.number);
    state
}

/// An engine without entries: the manifest does not look into tables.
struct Engine {
    directory: Arc<TableDirectory>,
    manifest: Manifest,
}

/// What a story has come to.
#[derive(Default)]
struct Told {
    /// After the last commit that succeeded; `None`: the engine was not made yet.
    state: Option<VersionEdit>,
    /// After the commit that failed.
    pending: Option<VersionEdit>,
    error: Option<Error>,
}

/// Commits of the whole story.
const COMMITS: u64 = 10;

impl Engine {
    fn create(fs: &SimFileSystem) -> Result<Self> {
        let directory = directory(fs);
        let mut manifest = Manifest::create(&directory, &Version::default())?;
        // So that the story has several manifests.
        manifest.rewrite_bytes_min = 0;
        Ok(Self { directory, manifest })
    }

    fn open(fs: &SimFileSystem) -> Result<Self> {
        let directory = directory(fs);
        let mut manifest = Manifest::open(&directory)?;
        directory.remove_orphans()?;
        manifest.rewrite_bytes_min = 0;
        Ok(Self { directory, manifest })
    }

    /// Writes the file of a table whose keys no other has, as long as `flush` is another.
    fn write_table(&self, level: usize, flush: u64) -> Result<AddedTable> {
        let (number, uid) = self.directory.allocate();
        let path = self.directory.table_path(number);
        let failed = |error| write_error("write", &path, error);
        let file = self.directory.fs().create(&path).map_err(failed)?;
        file.write_at(b"entries", 0).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        // In the last level seqnos are zero.
        let seqno = if level == 0 { flush * 10 } else { 0 };
        let properties = Properties {
            seqno_min: Seqno(seqno),
            seqno_max: Seqno(seqno),
            smallest: format!("{flush:04}").into_bytes(),
            largest: UpperBound { key: format!("{flush:04}").into_bytes(), inclusive: true },
            ..Properties::default()
        };
        let metadata = TableMetadata { uid, size_bytes: 7, properties };
        Ok(AddedTable { level, number, metadata })
    }

    fn flush(&self, flush: u64) -> Result<VersionEdit> {
        let flushed = Some(Flushed {
            seqno: Seqno(flush * 10),
            clock: Timestamp::from_millis(flush),
            log: Position::from_u64(flush << 32),
        });
        let added = vec![self.write_table(0, flush)?];
        Ok(VersionEdit { added, flushed, ..VersionEdit::default() })
    }

    /// The oldest table of level 0 moves to the last level.
    fn move_oldest(&self) -> VersionEdit {
        let table = self.manifest.version().level(0).tables().last().expect("one was flushed");
        let (number, metadata) = (table.number(), table.metadata().clone());
        VersionEdit {
            added: vec![AddedTable { level: 6, number, metadata }],
            removed: vec![(0, number)],
            flushed: None,
        }
    }

    /// A table of level 0 and one of level 6 become one of level 6.
    fn merge(&self, flush: u64) -> Result<VersionEdit> {
        let first = |level: usize| {
            let tables = self.manifest.version().level(level).tables();
            (level, tables.last().expect("the story has put one here").number())
        };
        let added = vec![self.write_table(6, flush)?];
        Ok(VersionEdit { added, removed: vec![first(0), first(6)], flushed: None })
    }

    /// What the `number`th commit of the story is about.
    fn edit(&self, number: u64) -> Result<VersionEdit> {
        match number % 5 {
            0 | 1 | 3 => self.flush(number),
            2 => Ok(self.move_oldest()),
            _ => self.merge(number),
        }
    }

    /// The `number`th commit.
    fn step(&mut self, number: u64, told: &mut Told) -> Result<()> {
        let edit = self.edit(number)?;
        let (next, _) = self.manifest.version().apply(&edit, &self.directory).expect("it fits");
        let mut next = next.snapshot();
        next.added.sort_by_key(|table| table.number);
        told.pending = Some(next);
        self.manifest.commit(&edit)?;
        told.state = Some(state(&self.manifest));
        assert_eq!(told.state, told.pending.take());
        self.directory.remove_garbage()?;
        Ok(())
    }
}

/// The whole story, or what of it came before an error.
fn tell(fs: &SimFileSystem) -> Told {
    let mut told = Told::default();
    let result = Engine::create(fs).and_then(|mut engine| {
        told.state = Some(state(&engine.manifest));
        (0..COMMITS).try_for_each(|number| engine.step(number, &mut told))
    });
    told.error = result.err();
    told
}
