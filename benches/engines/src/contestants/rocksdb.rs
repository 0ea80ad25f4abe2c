//! RocksDB, once with its defaults and once as an expert sets it up for small values on a local disk.
//!
//! Without sync each write goes to the page cache, through the log: its default. Its memory comes from its own allocator
//! calls, that is from the C library's malloc.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRawIterator, DataBlockIndexType, Options,
    ReadOptions, WriteBatch, WriteOptions,
};

use super::{Budget, Class, Contestant, Outcome};

pub struct Rocksdb {
    db: DB,
    buffered: WriteOptions,
    synced: WriteOptions,
}

impl Rocksdb {
    /// Its defaults, apart from LZ4: what it has from 11.5 on, in place of Snappy. The block cache has 32 MiB then.
    pub fn open_default(directory: &Path) -> Outcome<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::Lz4);
        Self::open(directory, &options)
    }

    /// The same budgets as everybody; filters for tables and memtables, which are off by default; a hash index in data
    /// blocks, the lock-free cache, levels compressed from the second rewrite on.
    pub fn open_tuned(directory: &Path, budget: Budget) -> Outcome<Self> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_hyper_clock_cache(budget.cache_bytes, 0));
        table.set_bloom_filter(10.0, false);
        table.set_whole_key_filtering(true);
        table.set_optimize_filters_for_memory(true);
        table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
        table.set_data_block_hash_ratio(0.75);
        table.set_format_version(6);

        let processors = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(budget.memtable_bytes);
        options.set_max_write_buffer_number(4);
        options.set_memtable_prefix_bloom_ratio(0.1);
        options.set_memtable_whole_key_filtering(true);
        options.set_max_background_jobs(i32::try_from(processors)?);
        options.set_bytes_per_sync(1 << 20);
        let (raw, lz4) = (DBCompressionType::None, DBCompressionType::Lz4);
        options.set_compression_per_level(&[raw, raw, lz4, lz4, lz4, lz4, lz4]);
        Self::open(directory, &options)
    }

    fn open(directory: &Path, options: &Options) -> Outcome<Self> {
        let db = DB::open(options, directory)?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        Ok(Self { db, buffered: WriteOptions::default(), synced })
    }

    const fn options(&self, class: Class) -> &WriteOptions {
        match class {
            Class::PageCache => &self.buffered,
            Class::Synced => &self.synced,
        }
    }

    fn walk(
        mut pairs: DBRawIterator<'_>,
        step: impl Fn(&mut DBRawIterator<'_>),
        limit: u64,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Outcome<u64> {
        let mut count = 0;
        while count < limit
            && let Some((key, value)) = pairs.item()
        {
            visit(key, value);
            count += 1;
            if count < limit {
                step(&mut pairs);
            }
        }
        pairs.status()?;
        Ok(count)
    }
}

impl Contestant for Rocksdb {
    fn put(&self, key: &[u8], value: &[u8], class: Class) -> Outcome<()> {
        Ok(self.db.put_opt(key, value, self.options(class))?)
    }

    fn put_batch(&self, pairs: &[(Vec<u8>, Vec<u8>)], class: Class) -> Outcome<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in pairs {
            batch.put(key, value);
        }
        Ok(self.db.write_opt(batch, self.options(class))?)
    }

    fn delete(&self, key: &[u8], class: Class) -> Outcome<()> {
        Ok(self.db.delete_opt(key, self.options(class))?)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let found = self.db.get_pinned(key)?;
        if let Some(value) = &found {
            visit(value);
        }
        Ok(found.is_some())
    }

    fn scan(&self, start: &[u8], limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64> {
        let mut pairs = self.db.raw_iterator_opt(ReadOptions::default());
        pairs.seek(start);
        Self::walk(pairs, |pairs| pairs.next(), limit, visit)
    }

    fn scan_reverse(&self, limit: u64, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64> {
        let mut pairs = self.db.raw_iterator_opt(ReadOptions::default());
        pairs.seek_to_last();
        Self::walk(pairs, |pairs| pairs.prev(), limit, visit)
    }

    fn settle(&self) -> Outcome<()> {
        self.db.flush()?;
        self.db.compact_range(None::<&[u8]>, None::<&[u8]>);
        Ok(())
    }
}
