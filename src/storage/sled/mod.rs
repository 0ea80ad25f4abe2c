//! The engine on sled 0.34: the pluggable baseline to compare with, and for those who trust it.
//!
//! A directory holds `lock` (locked while the environment is open) and `sled/`, one `sled::Db` for all engines of the node. Each
//! engine is one tree of it (`rows`); the default tree is the catalogue:
//!
//! | row | key | value |
//! |---|---|---|
//! | version | `version` | 1 (4, little-endian) |
//! | engine | `engine/`, name | id of its tree (8, little-endian) |
//!
//! The tree with id `n` is called `tree-n`. Ids are given out by counting up from the largest there is. A tree that no row names
//! is what a crash left of an engine that was being created, replaced or removed; it is dropped at open.
//!
//! # Limits of this engine
//!
//! * [`Durability::Buffered`] costs a flush of sled's log, shared by all that wait (`store`).
//! * Damage in the tail of sled's log is cut off without a word (`store`).
//! * A delete of a range reads and removes each of its entries, and holds all of them in memory as one batch.
//! * A view costs memory for what is overwritten while it is open; beyond [`SledOptions::view_bytes_max`] it is given up, and
//!   its reads fail with [`Error::Invalid`].
//! * sled keeps a leaf of up to 16 entries as one page, in memory and on disk; large values are rewritten with their page.
//! * Batches of all engines of the *process* are applied one after the other, and reads wait for the one that is being applied:
//!   sled has one lock for all its databases. None of them waits for a sync.
//! * Opening reads the whole log since sled's last own snapshot, but counts nothing: each engine's counters are a row.

mod changes;
mod engine;
mod group;
mod rows;
mod scan;
mod store;
#[cfg(test)]
mod tests;
mod versions;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::engine::SledEngine;
use self::rows::State;
use self::store::Store;
use super::dump::{DumpReader, Kind};
use super::names::NamesInUse;
use super::{Durability, Environment, EnvironmentStatus, Error, Result, StorageEngine};

const VERSION: u32 = 1;
const VERSION_KEY: &[u8] = b"version";
const ENGINE_PREFIX: &[u8] = b"engine/";
const TREE_PREFIX: &str = "tree-";

/// An installed checkpoint is written in batches that end at this size.
const INSTALL_BATCH_BYTES: usize = 1024 * 1024;

/// What an operator may turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SledOptions {
    /// Bytes of main memory for sled's page cache, over all engines.
    pub cache_bytes: u64,
    /// Writes are refused with [`Error::DiskFull`] when the file system has fewer free bytes than this besides what they need.
    /// Batches that only delete may use three quarters of it.
    pub disk_reserve_bytes: u64,
    /// Bytes of main memory that each engine may take for what open views still see and writes have replaced. Beyond it the
    /// oldest views are given up.
    pub view_bytes_max: usize,
}

impl Default for SledOptions {
    /// 256 MiB of cache, 16 MiB of reserve, 256 MiB for views.
    fn default() -> Self {
        Self {
            cache_bytes: 256 * 1024 * 1024,
            disk_reserve_bytes: 16 * 1024 * 1024,
            view_bytes_max: 256 * 1024 * 1024,
        }
    }
}

/// All sled engines of a node, in one directory.
///
/// Any thread may call anything. The directory stays locked until the environment, its engines and their views are dropped.
pub struct SledEnvironment {
    store: Arc<Store>,
    names: NamesInUse,
    options: SledOptions,
    next_tree_id: AtomicU64,
}

impl SledEnvironment {
    /// Opens the environment in `directory`, or creates it. [`Error::Locked`] when it is open elsewhere.
    pub fn open(directory: impl AsRef<Path>, options: SledOptions) -> Result<Self> {
        let store = Arc::new(Store::open(directory.as_ref(), &options)?);
        let environment =
            Self { store, names: NamesInUse::default(), options, next_tree_id: AtomicU64::new(0) };
        environment.check_version()?;
        environment.drop_leftovers()?;
        Ok(environment)
    }

    fn check_version(&self) -> Result<()> {
        let catalogue = self.store.database();
        let row = self.store.call("read", || catalogue.get(VERSION_KEY))?;
        match row.as_deref() {
            None => self.set_row(VERSION_KEY, &VERSION.to_le_bytes()),
            Some(row) if row == VERSION.to_le_bytes() => Ok(()),
            Some(row) => Err(Error::Invalid(format!(
                "the sled directory has version {row:?}; this program reads version {VERSION}"
            ))),
        }
    }

    fn drop_leftovers(&self) -> Result<()> {
        let mut wanted = BTreeSet::new();
        for name in self.list()? {
            wanted.extend(self.tree_id(&name)?);
        }
        for tree in self.store.database().tree_names() {
            let id = std::str::from_utf8(&tree).ok().and_then(parse_tree_name);
            let Some(id) = id else { continue };
            self.next_tree_id.fetch_max(id + 1, Ordering::Relaxed);
            if !wanted.contains(&id) {
                self.drop_tree(id)?;
            }
        }
        Ok(())
    }

    fn tree_id(&self, name: &str) -> Result<Option<u64>> {
        let catalogue = self.store.database();
        let row = self.store.call("read", || catalogue.get(engine_key(name)))?;
        let Some(row) = row else { return Ok(None) };
        match row.as_ref().try_into() {
            Ok(bytes) => Ok(Some(u64::from_le_bytes(bytes))),
            Err(_) => Err(self.store.damaged("malformed row of the catalogue")),
        }
    }

    fn tree(&self, id: u64) -> Result<sled::Tree> {
        self.store.change("create", || self.store.database().open_tree(tree_name(id)))
    }

    fn new_tree(&self) -> Result<(u64, sled::Tree)> {
        let id = self.next_tree_id.fetch_add(1, Ordering::Relaxed);
        Ok((id, self.tree(id)?))
    }

    fn drop_tree(&self, id: u64) -> Result<()> {
        self.store.change("drop", || self.store.database().drop_tree(tree_name(id)).map(|_| ()))
    }

    fn set_row(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.store.change("write", || self.store.database().insert(key, value).map(|_| ()))
    }

    fn sync(&self) -> Result<()> {
        self.store.secure(self.store.cover(), Durability::Sync)
    }

    /// Lets `name` mean the tree `id`, durably and at once, and drops the tree that it meant before. The log keeps its order, so
    /// the row is never durable without the tree.
    fn switch(&self, name: &str, id: u64) -> Result<()> {
        let old = self.tree_id(name)?;
        self.set_row(&engine_key(name), &id.to_le_bytes())?;
        self.sync()?;
        old.map_or(Ok(()), |old| self.drop_tree(old))
    }

    fn fill(&self, tree: &sled::Tree, reader: &mut DumpReader) -> Result<()> {
        let header = reader.header();
        let mut state = State { seqno: header.seqno, clock: header.clock, ..State::default() };
        let mut batch = sled::Batch::default();
        let mut batch_bytes = 0;
        while let Some(entry) = reader.next()? {
            let key = rows::entry_key(entry.key);
            state.count(&key, entry.value);
            if let Some(expires_at) = entry.expires_at {
                batch.insert(rows::expiry_key(expires_at, &key), &[]);
            }
            batch_bytes += entry.key.len() + entry.value.len();
            batch.insert(key, rows::encode_entry(entry.value, entry.expires_at));
            if batch_bytes >= INSTALL_BATCH_BYTES {
                self.store.check_room_for(batch_bytes as u64)?;
                self.store.apply(tree, std::mem::take(&mut batch))?;
                batch_bytes = 0;
            }
        }
        batch.insert(rows::STATE_KEY, state.encode());
        self.store.check_room_for(batch_bytes as u64)?;
        self.store.apply(tree, batch).map(|_| ())
    }
}

impl Environment for SledEnvironment {
    fn kind(&self) -> &'static str {
        "sled"
    }

    fn open(&self, name: &str) -> Result<Arc<dyn StorageEngine>> {
        let guard = self.names.claim(name)?;
        let tree = if let Some(id) = self.tree_id(name)? {
            self.tree(id)?
        } else {
            self.store.check_room_for(0)?;
            let (id, tree) = self.new_tree()?;
            let state = State::default().encode();
            self.store.change("write", || tree.insert(rows::STATE_KEY, state))?;
            self.switch(name, id)?;
            tree
        };
        let view_bytes_max = self.options.view_bytes_max;
        Ok(Arc::new(SledEngine::open(self.store.clone(), tree, guard, view_bytes_max)?))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let _guard = self.names.claim(name)?;
        let Some(id) = self.tree_id(name)? else { return Ok(()) };
        let catalogue = self.store.database();
        self.store.change("remove", || catalogue.remove(engine_key(name)))?;
        self.sync()?;
        self.drop_tree(id)
    }

    fn list(&self) -> Result<Vec<String>> {
        let mut rows = self.store.database().scan_prefix(ENGINE_PREFIX);
        let mut names = Vec::new();
        while let Some((key, _)) = self.store.next(&mut rows)? {
            match std::str::from_utf8(&key[ENGINE_PREFIX.len()..]) {
                Ok(name) => names.push(name.to_owned()),
                Err(_) => return Err(self.store.damaged("malformed row of the catalogue")),
            }
        }
        Ok(names)
    }

    fn install(&self, name: &str, checkpoint: &Path) -> Result<()> {
        let _guard = self.names.claim(name)?;
        let mut reader = DumpReader::open(checkpoint, Kind::Sled)?;
        let (id, tree) = self.new_tree()?;
        if let Err(error) = self.fill(&tree, &mut reader) {
            // Nothing names it; should this fail too, the next open drops it.
            let _ = self.drop_tree(id);
            return Err(error);
        }
        self.switch(name, id)
    }

    fn status(&self) -> EnvironmentStatus {
        EnvironmentStatus {
            disk_bytes: self.store.disk_bytes(),
            // sled does not tell how much of its cache is filled; this is the limit.
            memory_bytes: self.options.cache_bytes,
            writable: self.store.check_writable().is_ok(),
            ..EnvironmentStatus::default()
        }
    }
}

fn engine_key(name: &str) -> Vec<u8> {
    [ENGINE_PREFIX, name.as_bytes()].concat()
}

fn tree_name(id: u64) -> String {
    format!("{TREE_PREFIX}{id}")
}

fn parse_tree_name(name: &str) -> Option<u64> {
    name.strip_prefix(TREE_PREFIX)?.parse().ok()
}
