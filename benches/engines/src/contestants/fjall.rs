//! fjall, with its defaults (bloom filters, no compression in the first two levels and LZ4 below) and the common budgets.
//! By default each write goes to the page cache before it returns (`PersistMode::Buffer`).

use std::path::Path;
use std::time::Duration;

use fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Budget, Class, Contestant, Outcome};

pub struct Fjall {
    database: Database,
    pairs: Keyspace,
}

impl Fjall {
    pub fn open(directory: &Path, budget: Budget) -> Outcome<Self> {
        let database = Database::builder(directory).cache_size(budget.cache_bytes as u64).open()?;
        let options =
            || KeyspaceCreateOptions::default().max_memtable_size(budget.memtable_bytes as u64);
        let pairs = database.keyspace("bench", options)?;
        Ok(Self { database, pairs })
    }

    fn finish(&self, class: Class) -> Outcome<()> {
        match class {
            Class::PageCache => Ok(()),
            Class::Synced => Ok(self.database.persist(PersistMode::SyncData)?),
        }
    }

    fn walk(
        pairs: impl Iterator<Item = Guard>,
        limit: u64,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Outcome<u64> {
        let mut count = 0;
        for pair in pairs.take(usize::try_from(limit)?) {
            let (key, value) = pair.into_inner()?;
            visit(&key, &value);
            count += 1;
        }
        Ok(count)
    }
}

impl Contestant for Fjall {
    fn put(&self, key: &[u8], value: &[u8], class: Class) -> Outcome<()> {
        self.pairs.insert(key, value)?;
        self.finish(class)
    }

    fn put_batch(&self, pairs: &[(Vec<u8>, Vec<u8>)], class: Class) -> Outcome<()> {
        let mut batch = self.database.batch();
        for (key, value) in pairs {
            batch.insert(&self.pairs, key.as_slice(), value.as_slice());
        }
        batch.commit()?;
        self.finish(class)
    }

    fn delete(&self, key: &[u8], class: Class) -> Outcome<()> {
        self.pairs.remove(key)?;
        self.finish(class)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let found = self.pairs.get(key)?;
        if let Some(value) = &found {
            visit(value);
        }
        Ok(found.is_some())
    }

    fn scan(&self, start: &[u8], limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64> {
        Self::walk(self.pairs.range(start..), limit, visit)
    }

    fn scan_reverse(&self, limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64> {
        Self::walk(self.pairs.iter().rev(), limit, visit)
    }

    fn settle(&self) -> Outcome<()> {
        self.pairs.rotate_memtable_and_wait()?;
        while self.database.outstanding_flushes() > 0 || self.database.active_compactions() > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(self.pairs.major_compact()?)
    }
}
