//! The engines behind one small trait. Each file says how its engine is set up, and why.

mod fjall;
mod kvstore;
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod sled;

use std::path::Path;

/// Any failure ends the run.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How far a write is safe when the call returns. Engines are compared within one class only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// In the page cache: survives `kill -9`, not a power loss.
    PageCache,
    /// On stable storage.
    Synced,
}

impl Class {
    pub const fn name(self) -> &'static str {
        match self {
            Self::PageCache => "page cache",
            Self::Synced => "synced",
        }
    }
}

/// What all engines get alike.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    pub cache_bytes: usize,
    pub memtable_bytes: usize,
}

/// An open database. Threads share it.
pub trait Contestant: Send + Sync {
    fn put(&self, key: &[u8], value: &[u8], class: Class) -> Outcome<()>;

    /// Many puts as one atomic write.
    fn put_batch(&self, pairs: &[(Vec<u8>, Vec<u8>)], class: Class) -> Outcome<()>;

    fn delete(&self, key: &[u8], class: Class) -> Outcome<()>;

    /// Hands the value to `visit`, with as few copies as the engine allows; returns whether there is one.
    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool>;

    /// Hands up to `limit` pairs from `start` on to `visit`, upwards; returns how many there were.
    fn scan(&self, start: &[u8], limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64>;

    /// As [`Self::scan`] from the last key of all downwards.
    fn scan_reverse(&self, limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64>;

    /// Waits until everything lies in the engine's tables and these are as compact as they get.
    fn settle(&self) -> Outcome<()>;
}

/// Which engine, with which settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Kvstore,
    RocksdbTuned,
    RocksdbDefault,
    Fjall,
    Redb,
    Sled,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Kvstore,
        Self::RocksdbTuned,
        Self::RocksdbDefault,
        Self::Fjall,
        Self::Redb,
        Self::Sled,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvstore => "kvstore",
            Self::RocksdbTuned => "rocksdb-tuned",
            Self::RocksdbDefault => "rocksdb-default",
            Self::Fjall => "fjall",
            Self::Redb => "redb",
            Self::Sled => "sled",
        }
    }

    /// Whether it promises less than the class says. Of what was not synced, a killed process of redb or sled loses some; a
    /// flush of sled is `sync_file_range`, which leaves the disk's cache and the file's metadata alone.
    pub const fn promises_less(self, class: Class) -> bool {
        match class {
            Class::PageCache => matches!(self, Self::Redb | Self::Sled),
            Class::Synced => matches!(self, Self::Sled),
        }
    }

    /// Opens the database in `directory`, or makes an empty one.
    pub fn open(self, directory: &Path, budget: Budget) -> Outcome<Box<dyn Contestant>> {
        Ok(match self {
            Self::Kvstore => Box::new(kvstore::Kvstore::open(directory, budget)?),
            #[cfg(feature = "rocksdb")]
            Self::RocksdbTuned => Box::new(rocksdb::Rocksdb::open_tuned(directory, budget)?),
            #[cfg(feature = "rocksdb")]
            Self::RocksdbDefault => Box::new(rocksdb::Rocksdb::open_default(directory)?),
            #[cfg(not(feature = "rocksdb"))]
            Self::RocksdbTuned | Self::RocksdbDefault => {
                return Err("built without RocksDB: leave it out of engines=".into());
            }
            Self::Fjall => Box::new(fjall::Fjall::open(directory, budget)?),
            Self::Redb => Box::new(redb::Redb::open(directory, budget)?),
            Self::Sled => Box::new(sled::Sled::open(directory, budget)?),
        })
    }
}
