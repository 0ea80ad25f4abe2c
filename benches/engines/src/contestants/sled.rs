//! sled 0.34, with its defaults and the common budget. A write that is not flushed is in a buffer of the process for up to
//! 500 ms, so it promises less than the others in the rows of the page cache. Its flush is `sync_file_range`,
//! which promises less than fdatasync in the rows of synced writes. It does not compress.

use std::path::Path;

use sled::{Batch, Config, Db, IVec, Mode};

use super::{Budget, Class, Contestant, Outcome};

pub struct Sled {
    db: Db,
}

impl Sled {
    pub fn open(directory: &Path, budget: Budget) -> Outcome<Self> {
        let bytes = (budget.cache_bytes + budget.memtable_bytes) as u64;
        let config = Config::new().path(directory).cache_capacity(bytes).mode(Mode::HighThroughput);
        Ok(Self { db: config.open()? })
    }

    fn finish(&self, class: Class) -> Outcome<()> {
        if class == Class::Synced {
            self.db.flush()?;
        }
        Ok(())
    }

    fn walk(
        pairs: impl Iterator<Item = sled::Result<(IVec, IVec)>>,
        limit: u64,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Outcome<u64> {
        let mut count = 0;
        for pair in pairs.take(usize::try_from(limit)?) {
            let (key, value) = pair?;
            visit(&key, &value);
            count += 1;
        }
        Ok(count)
    }
}

impl Contestant for Sled {
    fn put(&self, key: &[u8], value: &[u8], class: Class) -> Outcome<()> {
        self.db.insert(key, value)?;
        self.finish(class)
    }

    fn put_batch(&self, pairs: &[(Vec<u8>, Vec<u8>)], class: Class) -> Outcome<()> {
        let mut batch = Batch::default();
        for (key, value) in pairs {
            batch.insert(key.as_slice(), value.as_slice());
        }
        self.db.apply_batch(batch)?;
        self.finish(class)
    }

    fn delete(&self, key: &[u8], class: Class) -> Outcome<()> {
        self.db.remove(key)?;
        self.finish(class)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let found = self.db.get(key)?;
        if let Some(value) = &found {
            visit(value);
        }
        Ok(found.is_some())
    }

    fn scan(&self, start: &[u8], limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64> {
        Self::walk(self.db.range(start..), limit, visit)
    }

    fn scan_reverse(&self, limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64> {
        Self::walk(self.db.iter().rev(), limit, visit)
    }

    fn settle(&self) -> Outcome<()> {
        self.db.flush()?;
        Ok(())
    }
}
