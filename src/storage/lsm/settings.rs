//! Settings of an environment. Nothing here is needed to read what was written.

use std::time::Duration;

use super::compaction::pacer::PacerOptions;
use super::compaction::picker::PickerOptions;
use super::options::{Compression, TableOptions};
use super::version::LAST_LEVEL;
use crate::wal;

/// Table files that are open at once, where nothing else is said.
pub(super) const OPEN_FILES_MAX: usize = 1_000;

/// Settings of an environment.
#[derive(Debug, Clone)]
pub struct LsmOptions {
    /// A memtable of this size is flushed. Default 100 MiB, at most 1 GiB: it must fit into one table.
    pub memtable_bytes: usize,
    /// All memtables of all engines together; above it the largest is flushed. Default four times a memtable.
    pub memtables_bytes_max: usize,
    /// Size of the block cache. Default 256 MiB.
    pub cache_bytes: usize,
    /// Table files that are open at once, of all engines together, at least one. Each thread that reads may have one more
    /// open for a moment. Default 1,000.
    pub open_files_max: usize,
    /// No table of a compaction is larger, unless one key needs it. Default 100 MiB.
    pub table_bytes_max: u64,
    /// Compresses what reaches the last level by Zstandard at this level, instead of LZ4: smaller files, dearer reads.
    /// Default none.
    pub last_level_zstd: Option<i32>,
    /// Whether writes go to a log. Without, only a flush makes them durable, and the caller replays. Default yes.
    pub log: bool,
    /// Size of a segment of the log. Default 16 MiB: two of them lie there even when the log is empty.
    pub log_segment_bytes: u32,
    /// Above this size of the log, whoever needs its oldest segment is flushed. Default 512 MiB.
    pub log_bytes_max: u64,
    /// Whether tables are compacted without being asked to. Default yes.
    pub compaction: bool,
    /// How often there is a look for work that only saves space. Default 300 s.
    pub compaction_interval: Duration,
    /// Threads for flushes and compactions, besides one that only flushes and one that only compacts level 0; 0: none at
    /// all, whoever uses the environment does the work on his own thread, for simulations. Default one less than
    /// processors, at least one.
    pub threads: usize,
    /// Writes are refused with [`Error::DiskFull`](crate::storage::Error::DiskFull) while the file system has fewer free
    /// bytes than this, besides what they need; batches that only delete may use three quarters of it. Default 16 MiB.
    pub disk_reserve_bytes: u64,
    /// Random, another one for each opening.
    pub seed: u64,
    /// How all tables are laid out, instead of as it suits their level.
    pub(crate) table: Option<TableOptions>,
    pub(crate) picker: PickerOptions,
    pub(crate) pacer: PacerOptions,
}

impl LsmOptions {
    /// The defaults.
    pub fn new(seed: u64) -> Self {
        let memtable_bytes = 100 << 20;
        Self {
            memtable_bytes,
            memtables_bytes_max: 4 * memtable_bytes,
            cache_bytes: 256 << 20,
            open_files_max: OPEN_FILES_MAX,
            table_bytes_max: 100 << 20,
            last_level_zstd: None,
            log: true,
            log_segment_bytes: 16 << 20,
            log_bytes_max: 512 << 20,
            compaction: true,
            compaction_interval: Duration::from_mins(5),
            threads: std::thread::available_parallelism().map_or(2, usize::from).max(2) - 1,
            disk_reserve_bytes: 16 << 20,
            seed,
            table: None,
            picker: PickerOptions::default(),
            pacer: PacerOptions::default(),
        }
    }

    /// So small that a few writes do everything: memtables from 1 KiB, segments of the log from 4 KiB, level 0 of one table
    /// on, blocks of one entry, indexes of many pieces, fewer handles than tables. Which ones, says the seed.
    #[cfg(test)]
    pub(crate) fn tiny(seed: u64) -> Self {
        use rand::rngs::StdRng;
        use rand::{Rng as _, SeedableRng as _};
        let mut random = StdRng::seed_from_u64(seed);
        let mut options = Self::new(seed);
        options.memtable_bytes = 1 << random.random_range(10..16);
        options.memtables_bytes_max = options.memtable_bytes * random.random_range(2..6);
        options.cache_bytes = random.random_range(0..64) << 10;
        options.table_bytes_max = 4 << random.random_range(10..15);
        options.log_segment_bytes = 1 << random.random_range(12..18);
        options.log_bytes_max = u64::from(options.log_segment_bytes) * random.random_range(1..8);
        options.compaction_interval = Duration::from_millis(random.random_range(1..200));
        options.last_level_zstd = random.random::<bool>().then_some(1);
        options.threads = random.random_range(1..4);
        options.picker.l0_tables = random.random_range(1..5);
        options.picker.base_bytes = 4 << random.random_range(10..15);
        options.picker.growth = random.random_range(2..10);
        options.picker.table_bytes = options.table_bytes_max / random.random_range(1..4);
        options.pacer.l0_soft = options.picker.l0_tables + random.random_range(0..4);
        options.pacer.l0_hard = options.pacer.l0_soft + random.random_range(1..10);
        options.pacer.l0_stop = options.pacer.l0_hard + random.random_range(1..10);
        options.pacer.sealed_stop = random.random_range(2..5);
        options.table = random.random_ratio(3, 4).then(|| TableOptions {
            block_bytes: 1 << random.random_range(4..14),
            bundle_entries: 1 << random.random_range(0..8),
            filter_bits_per_key: random.random_range(0..16),
            fingerprints: random.random(),
            compression: [Compression::None, Compression::Lz4, Compression::Zstd(1)]
                [random.random_range(0..3)],
            index_bytes_max: 1 << random.random_range(6..18),
        });
        options.open_files_max = random.random_range(1..5);
        options
    }

    /// The layout of a table of `level`.
    pub(super) fn table_options(&self, level: usize) -> TableOptions {
        if let Some(table) = &self.table {
            return table.clone();
        }
        let is_last = level == LAST_LEVEL;
        let mut options = TableOptions::for_level(level, is_last);
        if let Some(zstd) = self.last_level_zstd.filter(|_| is_last) {
            options.compression = Compression::Zstd(zstd);
        }
        options
    }

    pub(super) fn log_options(&self) -> wal::Options {
        let background =
            if self.threads == 0 { wal::Background::Caller } else { wal::Background::Threads };
        wal::Options {
            segment_bytes: self.log_segment_bytes,
            background,
            ..wal::Options::new(self.seed.rotate_left(17))
        }
    }
}
