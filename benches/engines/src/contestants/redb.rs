//! redb, a copy-on-write B-tree: one transaction for each write. It has no class between "in the memory of the process"
//! (`Durability::None`, what it does in the rows of the page cache) and fsync (`Immediate`). It does not compress.

use std::path::Path;

use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition,
};

use super::{Budget, Class, Contestant, Outcome};

const PAIRS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("bench");

pub struct Redb {
    database: Database,
}

impl Redb {
    pub fn open(directory: &Path, budget: Budget) -> Outcome<Self> {
        std::fs::create_dir_all(directory)?;
        let database = Database::builder()
            .set_cache_size(budget.cache_bytes + budget.memtable_bytes)
            .create(directory.join("redb"))?;
        let this = Self { database };
        this.write(Class::Synced, |_| Ok(()))?;
        Ok(this)
    }

    fn write(
        &self,
        class: Class,
        work: impl FnOnce(&mut Table<'_, &[u8], &[u8]>) -> Outcome<()>,
    ) -> Outcome<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(match class {
            Class::PageCache => Durability::None,
            Class::Synced => Durability::Immediate,
        })?;
        work(&mut transaction.open_table(PAIRS)?)?;
        Ok(transaction.commit()?)
    }

    fn table(&self) -> Outcome<ReadOnlyTable<&'static [u8], &'static [u8]>> {
        Ok(self.database.begin_read()?.open_table(PAIRS)?)
    }
}

impl Contestant for Redb {
    fn put(&self, key: &[u8], value: &[u8], class: Class) -> Outcome<()> {
        self.write(class, |table| {
            table.insert(key, value)?;
            Ok(())
        })
    }

    fn put_batch(&self, pairs: &[(Vec<u8>, Vec<u8>)], class: Class) -> Outcome<()> {
        self.write(class, |table| {
            for (key, value) in pairs {
                table.insert(key.as_slice(), value.as_slice())?;
            }
            Ok(())
        })
    }

    fn delete(&self, key: &[u8], class: Class) -> Outcome<()> {
        self.write(class, |table| {
            table.remove(key)?;
            Ok(())
        })
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let found = self.table()?.get(key)?;
        if let Some(value) = &found {
            visit(value.value());
        }
        Ok(found.is_some())
    }

    fn scan(&self, start: &[u8], limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64> {
        let mut count = 0;
        for pair in self.table()?.range(start..)?.take(usize::try_from(limit)?) {
            let (key, value) = pair?;
            visit(key.value(), value.value());
            count += 1;
        }
        Ok(count)
    }

    fn scan_reverse(&self, limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64> {
        let mut count = 0;
        for pair in self.table()?.iter()?.rev().take(usize::try_from(limit)?) {
            let (key, value) = pair?;
            visit(key.value(), value.value());
            count += 1;
        }
        Ok(count)
    }

    /// A synced commit, after which the pages of the unsynced ones can be used again.
    fn settle(&self) -> Outcome<()> {
        self.write(Class::Synced, |_| Ok(()))
    }
}
