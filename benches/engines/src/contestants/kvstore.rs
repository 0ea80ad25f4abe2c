//! This project's LSM engine, through the same trait as the server uses it.

use std::path::Path;
use std::sync::Arc;

use kvstore::storage::lsm::{LsmEnvironment, LsmOptions};
use kvstore::storage::{
    Direction, Durability, Environment, KeyRange, Scan, StorageEngine, WriteBatch,
};
use kvstore::util::fs::RealFileSystem;

use super::{Budget, Class, Contestant, Outcome};

pub struct Kvstore {
    engine: Arc<dyn StorageEngine>,
    // After the engine: it keeps the background threads.
    _environment: LsmEnvironment,
}

impl Kvstore {
    pub fn open(directory: &Path, budget: Budget) -> Outcome<Self> {
        let mut options = LsmOptions::new(1);
        options.cache_bytes = budget.cache_bytes;
        options.memtable_bytes = budget.memtable_bytes;
        options.memtables_bytes_max = 4 * budget.memtable_bytes;
        let environment = LsmEnvironment::open(Arc::new(RealFileSystem), directory, options)?;
        let engine = environment.open("bench")?;
        Ok(Self { engine, _environment: environment })
    }

    fn write(&self, batch: &WriteBatch, class: Class) -> Outcome<()> {
        let durability = match class {
            Class::PageCache => Durability::Buffered,
            Class::Synced => Durability::Sync,
        };
        self.engine.write(batch, durability)?;
        Ok(())
    }

    fn walk(
        mut scan: Box<dyn Scan + '_>,
        limit: u64,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Outcome<u64> {
        let mut count = 0;
        while count < limit
            && let Some(entry) = scan.next()?
        {
            visit(entry.key, entry.value);
            count += 1;
        }
        Ok(count)
    }
}

impl Contestant for Kvstore {
    fn put(&self, key: &[u8], value: &[u8], class: Class) -> Outcome<()> {
        let mut batch = WriteBatch::with_capacity(key.len() + value.len() + 16);
        batch.put(&[key], &[value], None);
        self.write(&batch, class)
    }

    fn put_batch(&self, pairs: &[(Vec<u8>, Vec<u8>)], class: Class) -> Outcome<()> {
        let mut batch = WriteBatch::new();
        for (key, value) in pairs {
            batch.put(&[key], &[value], None);
        }
        self.write(&batch, class)
    }

    fn delete(&self, key: &[u8], class: Class) -> Outcome<()> {
        let mut batch = WriteBatch::with_capacity(key.len() + 16);
        batch.delete(&[key]);
        self.write(&batch, class)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        Ok(self.engine.get_with(key, &mut |entry| visit(entry.value))?)
    }

    fn scan(&self, start: &[u8], limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64> {
        Self::walk(self.engine.scan(KeyRange::new(start, None), Direction::Forward)?, limit, visit)
    }

    fn scan_reverse(&self, limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64> {
        Self::walk(self.engine.scan(KeyRange::ALL, Direction::Reverse)?, limit, visit)
    }

    fn settle(&self) -> Outcome<()> {
        self.engine.flush()?;
        self.engine.compact(KeyRange::ALL)?;
        Ok(())
    }
}
