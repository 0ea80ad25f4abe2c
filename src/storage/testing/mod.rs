//! The tests that every engine passes: scripts that read as stories (`script`), random histories against a plain map (`model`),
//! the contract's sentences one by one (`contract`), and many threads at once (`concurrent`); and the story of a full disk (`full_disk`), which
//! those engines tell that have one.
//!
//! An engine joins by one [`Subject`] and one line in [`on_each_engine`].

mod concurrent;
mod contract;
pub(crate) mod full_disk;
pub(crate) mod gate;
mod model;
pub(crate) mod property;
mod script;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::lsm::{LsmEnvironment, LsmOptions};
use super::memory::MemoryEnvironment;
use super::sled::{SledEnvironment, SledOptions};
use super::{Environment, KeyRange, Reader, Result, StorageEngine, WriteBatch};
use crate::util::fs::RealFileSystem;
use crate::util::time::Timestamp;

/// An engine under test.
pub(crate) struct Subject {
    /// As [`Environment::kind`] says.
    pub(crate) kind: &'static str,
    /// Opens the environment in a directory.
    pub(crate) open: fn(&Path) -> Result<Arc<dyn Environment>>,
    /// Whether an environment that is opened again holds what it held.
    pub(crate) keeps_files: bool,
    /// Whether `keys` and `bytes` of a status are exact once a write has returned.
    pub(crate) counts_exactly: bool,
}

pub(crate) const MEMORY: Subject = Subject {
    kind: "memory",
    open: |_| Ok(Arc::new(MemoryEnvironment::new())),
    keeps_files: false,
    counts_exactly: true,
};

pub(crate) const SLED: Subject = Subject {
    kind: "sled",
    open: |directory| Ok(Arc::new(SledEnvironment::open(directory, SledOptions::default())?)),
    keeps_files: true,
    counts_exactly: true,
};

pub(crate) const LSM: Subject = Subject {
    kind: "lsm",
    open: |directory| open_lsm(directory, LsmOptions::new(rand::random())),
    keeps_files: true,
    counts_exactly: false,
};

/// Another shape at each opening, so small that everything happens often: flushes, compactions, segments of the log.
pub(crate) const LSM_TINY: Subject = Subject {
    kind: "lsm",
    open: |directory| {
        let seed = rand::random();
        println!("LSM options of seed {seed}");
        open_lsm(directory, LsmOptions::tiny(seed))
    },
    keeps_files: true,
    counts_exactly: false,
};

fn open_lsm(directory: &Path, options: LsmOptions) -> Result<Arc<dyn Environment>> {
    let fs = Arc::new(RealFileSystem);
    Ok(Arc::new(LsmEnvironment::open(fs, directory, options)?))
}

/// Makes a test of each engine out of functions that take a [`Subject`], so that a failure names both.
macro_rules! on_each_engine {
    ($($story:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $story() { super::$story(&$crate::storage::testing::MEMORY); })*
        }
        mod sled {
            $(#[test] fn $story() { super::$story(&$crate::storage::testing::SLED); })*
        }
        mod lsm {
            $(#[test] fn $story() { super::$story(&$crate::storage::testing::LSM); })*
        }
        mod lsm_tiny {
            $(#[test] fn $story() { super::$story(&$crate::storage::testing::LSM_TINY); })*
        }
    };
}
pub(crate) use on_each_engine;

/// An environment in a directory of its own, which can be closed and opened again.
pub(crate) struct Home {
    pub(crate) subject: &'static Subject,
    directory: TempDir,
    environment: Option<Arc<dyn Environment>>,
}

impl Home {
    pub(crate) fn new(subject: &'static Subject) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut home = Self { subject, directory, environment: None };
        home.start();
        home
    }

    fn start(&mut self) {
        let opened = (self.subject.open)(&self.data()).expect("the environment opens");
        self.environment = Some(opened);
    }

    /// Where the environment lies.
    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A path beside the environment.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn environment(&self) -> &dyn Environment {
        self.environment.as_deref().expect("it is open")
    }

    pub(crate) fn open(&self, name: &str) -> Arc<dyn StorageEngine> {
        self.environment().open(name).expect("the engine opens")
    }

    /// Closes the environment, whose engines must be closed, and opens it again. One that keeps no files stays open.
    pub(crate) fn reopen(&mut self) {
        if self.subject.keeps_files {
            self.environment = None;
            self.start();
        }
    }
}

/// An entry as tests compare it: key, value, expiry in milliseconds.
pub(crate) type Row = (Vec<u8>, Vec<u8>, Option<u64>);

/// All entries that `reader` sees in `range`, in order.
pub(crate) fn rows_in(reader: &dyn Reader, range: KeyRange<'_>) -> Vec<Row> {
    let mut scan = reader.scan(range, super::Direction::Forward).expect("scans");
    let mut rows = Vec::new();
    while let Some(entry) = scan.next().expect("reads") {
        let expires_at = entry.expires_at.map(Timestamp::as_millis);
        rows.push((entry.key.to_vec(), entry.value.to_vec(), expires_at));
    }
    rows
}

/// All entries that `reader` sees.
pub(crate) fn rows(reader: &dyn Reader) -> Vec<Row> {
    rows_in(reader, KeyRange::ALL)
}

/// A batch of one put that never expires.
pub(crate) fn put(key: &[u8], value: &[u8]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.put(&[key], &[value], None);
    batch
}

/// The value under `key`.
pub(crate) fn value(reader: &dyn Reader, key: &[u8]) -> Option<Vec<u8>> {
    reader.get(key).expect("reads").map(|entry| entry.value.to_vec())
}

/// All files below `directory`, sorted.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}
