//! What an engine and an environment say about themselves.
//!
//! `keys` and `bytes` are sums over memtables and tables, because to know more would cost each write a read: a value is
//! taken for that of a new key, and a tombstone for the end of an older one, unless the same memtable or table, or an empty
//! tree below it, says otherwise. So they are exact until a key is overwritten, expires or goes with a range after its
//! memtable was flushed, and again once compaction has met both.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::compaction::pacer::Cause;
use super::compaction::picker::{Reason, debt_bytes};
use super::engine::Engine;
use super::files::TableFile;
use super::level::Span;
use super::shared::Shared;
use super::table::LookupCounts;
use super::tree::Tree;
use super::version::{LEVELS, Version};
use crate::storage::{EngineStatus, EnvironmentStatus};
use crate::util::time::Timestamp;

/// Counters of one engine since its opening.
#[derive(Debug, Default)]
pub(super) struct Figures {
    flushes: AtomicU64,
    flushed_bytes: AtomicU64,
    compactions: [AtomicU64; 6],
    compacted_bytes: AtomicU64,
    /// Flushes and compactions in the background that failed.
    failures: AtomicU64,
}

const WRITE_AMPLIFICATION: &str = "write_amplification";
const READ_AMPLIFICATION: &str = "read_amplification_max";
const SPACE_AMPLIFICATION: &str = "space_amplification_estimate";

/// Figures that have no sum.
const RATIOS: [&str; 3] = [WRITE_AMPLIFICATION, READ_AMPLIFICATION, SPACE_AMPLIFICATION];

const TABLES: [&str; LEVELS] =
    ["l0_tables", "l1_tables", "l2_tables", "l3_tables", "l4_tables", "l5_tables", "l6_tables"];
const BYTES: [&str; LEVELS] =
    ["l0_bytes", "l1_bytes", "l2_bytes", "l3_bytes", "l4_bytes", "l5_bytes", "l6_bytes"];

const REASONS: [(Reason, &str); 6] = [
    (Reason::LevelZero, "compactions_level_zero"),
    (Reason::Size, "compactions_size"),
    (Reason::Dead, "compactions_dead"),
    (Reason::Tombstones, "compactions_tombstones"),
    (Reason::Expired, "compactions_expired"),
    (Reason::Manual, "compactions_manual"),
];

const STALLS: [(Cause, [&str; 3]); 3] = [
    (Cause::LevelZero, ["delays_level_zero", "delayed_level_zero_millis", "stops_level_zero"]),
    (Cause::Debt, ["delays_debt", "delayed_debt_millis", "stops_debt"]),
    (Cause::Memtables, ["delays_memtables", "delayed_memtables_millis", "stops_memtables"]),
];

impl Figures {
    pub(super) fn count_flush(&self, bytes: u64) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.flushed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_compaction(&self, reason: Reason, bytes: u64) {
        if let Some(at) = REASONS.iter().position(|(other, _)| *other == reason) {
            self.compactions[at].fetch_add(1, Ordering::Relaxed);
        }
        self.compacted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn report(&self, into: &mut BTreeMap<&'static str, f64>) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        into.insert("flushes", read(&self.flushes));
        into.insert("flushed_bytes", read(&self.flushed_bytes));
        into.insert("compacted_bytes", read(&self.compacted_bytes));
        into.insert("background_failures", read(&self.failures));
        for ((_, name), count) in REASONS.iter().zip(&self.compactions) {
            into.insert(name, read(count));
        }
        let flushed = read(&self.flushed_bytes);
        if flushed > 0.0 {
            into.insert(WRITE_AMPLIFICATION, 1.0 + read(&self.compacted_bytes) / flushed);
        }
    }
}

impl Engine {
    /// See [`StorageEngine::status`](crate::storage::StorageEngine::status).
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(super) fn status(&self) -> EngineStatus {
        let tree = self.tree_owned();
        let mut figures = BTreeMap::new();
        self.figures.report(&mut figures);
        for (cause, [delays, millis, stops]) in STALLS {
            let stalls = self.pacer.stalls(cause);
            figures.insert(delays, stalls.delays as f64);
            figures.insert(millis, stalls.delayed.as_secs_f64() * 1e3);
            figures.insert(stops, stalls.stops as f64);
        }
        let Totals { keys, bytes, disk_bytes } = Totals::of(&tree);
        for (number, level) in tree.version.levels().iter().enumerate() {
            figures.insert(TABLES[number], level.tables().len() as f64);
            figures.insert(BYTES[number], level.size_bytes() as f64);
        }
        figures.insert(READ_AMPLIFICATION, runs(&tree.version) as f64);
        if let Some(amplification) = space_amplification(&tree.version) {
            figures.insert(SPACE_AMPLIFICATION, amplification);
        }
        let debt = debt_bytes(&tree.version, &self.shared.options.picker);
        figures.insert("compaction_debt_bytes", debt as f64);
        figures.insert("compacting_tables", self.running.lock().tables() as f64);
        figures.insert("sealed_memtables", tree.sealed.len() as f64);
        EngineStatus {
            keys,
            bytes,
            disk_bytes,
            memory_bytes: tree.memtable_bytes() as u64,
            writable: self.is_alive(),
            figures,
        }
    }

    /// See [`StorageEngine::next_expiry`](crate::storage::StorageEngine::next_expiry). Of each memtable and table the
    /// earliest and the latest expiry are known: where the clock lies between, something may expire at any time.
    pub(super) fn next_expiry(&self) -> Option<Timestamp> {
        let tree = self.tree_owned();
        let clock = tree.moment().clock;
        let memtables = tree.memtables().filter_map(|memtable| memtable.expiries());
        let tables = tree.version.tables().filter_map(|(_, table)| {
            Some((table.properties().earliest_expiry?, table.properties().latest_expiry?))
        });
        let next = |(earliest, latest): (Timestamp, Timestamp)| {
            if earliest > clock {
                Some(earliest)
            } else if latest > clock {
                Some(Timestamp::from_millis(clock.as_millis() + 1))
            } else {
                None
            }
        };
        memtables.chain(tables).filter_map(next).min()
    }
}

/// Tables that a point read may have to ask.
pub(super) fn runs(version: &Version) -> usize {
    let deeper = version.levels().iter().skip(1).filter(|level| !level.is_empty());
    version.level(0).tables().len() + deeper.count()
}

/// Bytes of all tables for each byte of the deepest level, which holds about what can be read; `None`: no tables.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(super) fn space_amplification(version: &Version) -> Option<f64> {
    let deepest = version.levels().iter().rev().find(|level| !level.is_empty())?;
    let bytes: u64 = version.levels().iter().map(|level| level.size_bytes()).sum();
    Some(bytes as f64 / deepest.size_bytes().max(1) as f64)
}

/// Sums over a tree.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) keys: u64,
    pub(super) bytes: u64,
    pub(super) disk_bytes: u64,
}

impl Totals {
    pub(super) fn of(tree: &Tree) -> Self {
        let (mut totals, mut deleted) = (Self::default(), 0);
        // From the oldest to the newest: a tombstone over nothing has removed nothing.
        for (number, level) in tree.version.levels().iter().enumerate().rev() {
            for table in level.tables().iter().rev() {
                let properties = table.properties();
                let deletions = properties.deletions;
                let kept = deletions + properties.reserved_keys;
                totals.keys += properties.distinct_keys.saturating_sub(kept);
                let bytes = properties.raw_key_bytes + properties.raw_value_bytes;
                totals.bytes += bytes.saturating_sub(properties.reserved_bytes);
                totals.disk_bytes += table.size_bytes();
                if deletions > 0 && lies_over_others(&tree.version, number, table) {
                    deleted += deletions;
                }
            }
        }
        let mut is_empty = tree.version.tables().next().is_none();
        let memtables: Vec<_> = tree.memtables().collect();
        for memtable in memtables.into_iter().rev() {
            let counts = memtable.counts();
            totals.keys += counts.keys;
            totals.bytes += counts.key_value_bytes;
            deleted += if is_empty { 0 } else { counts.deletions };
            is_empty &= memtable.is_empty();
        }
        totals.keys = totals.keys.saturating_sub(deleted);
        totals
    }
}

/// Whether there may be older entries of the keys of a table of level `number`.
fn lies_over_others(version: &Version, number: usize, table: &TableFile) -> bool {
    let span = Span::of(table);
    let is_older = |other: &TableFile| other.properties().seqno_max < table.properties().seqno_min;
    let beside = version.level(0).tables().iter().filter(|other| number == 0 && is_older(other));
    beside.into_iter().any(|other| Span::of(other).overlaps(span))
        || version.levels()[number + 1..].iter().any(|level| !level.range(span).is_empty())
}

/// See [`Environment::status`](crate::storage::Environment::status). Figures of engines are summed; what is a ratio is
/// made of the sums.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(super) fn of_environment(shared: &Shared) -> EnvironmentStatus {
    let cache = shared.cache.status();
    let (open_files, opened) = shared.files.figures();
    let mut status = EnvironmentStatus {
        disk_bytes: 0,
        memory_bytes: (cache.block_bytes + cache.pinned_bytes) as u64,
        writable: !shared.failure.is_set(),
        log: None,
        figures: BTreeMap::from([
            ("cache_budget_bytes", cache.budget_bytes as f64),
            ("cache_block_bytes", cache.block_bytes as f64),
            ("cache_pinned_bytes", cache.pinned_bytes as f64),
            ("cache_blocks", cache.blocks as f64),
            ("cache_reads", cache.reads as f64),
            ("cache_evictions", cache.evictions as f64),
            ("files_open", open_files as f64),
            ("files_opened", opened as f64),
        ]),
    };
    report_lookups(shared.cache.lookups().counts(), &mut status.figures);
    let (mut memtable_bytes, mut read_amplification) = (0, 0.0_f64);
    for engine in shared.queue.engines() {
        let of_engine = engine.status();
        status.disk_bytes += of_engine.disk_bytes;
        memtable_bytes += of_engine.memory_bytes;
        status.writable &= of_engine.writable;
        for (name, figure) in of_engine.figures {
            if name == READ_AMPLIFICATION {
                read_amplification = read_amplification.max(figure);
            } else if !RATIOS.contains(&name) {
                *status.figures.entry(name).or_default() += figure;
            }
        }
    }
    status.memory_bytes += memtable_bytes;
    let sum = |name: &str| status.figures.get(name).copied().unwrap_or_default();
    let deepest = BYTES.iter().rev().map(|name| sum(name)).find(|bytes| *bytes > 0.0);
    let tables = BYTES.iter().map(|name| sum(name)).sum::<f64>();
    let (flushed, compacted) = (sum("flushed_bytes"), sum("compacted_bytes"));
    let mut ratios = vec![("memtable_bytes", memtable_bytes as f64)];
    ratios.push((READ_AMPLIFICATION, read_amplification));
    if flushed > 0.0 {
        ratios.push((WRITE_AMPLIFICATION, 1.0 + compacted / flushed));
    }
    ratios.extend(deepest.map(|deepest| (SPACE_AMPLIFICATION, tables / deepest)));
    status.figures.extend(ratios);
    if let Some(log) = shared.log() {
        let log = log.status();
        status.disk_bytes += log.disk_bytes;
        status.memory_bytes += log.buffer_bytes as u64;
        status.writable &= log.poison.is_none();
        status.log = Some(log.counts);
        status.figures.extend([
            ("log_segments", log.segments as f64),
            ("log_bytes", log.disk_bytes as f64),
            ("log_records", log.counts.records as f64),
            ("log_syncs", log.counts.sync_micros.count() as f64),
            ("log_sync_micros", log.counts.sync_micros.sum as f64),
        ]);
    }
    status
}

/// How filters and cache have answered point reads.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn report_lookups(counts: LookupCounts, into: &mut BTreeMap<&'static str, f64>) {
    let LookupCounts { filtered, found, missed, cached, read } = counts;
    into.extend([
        ("lookups_filtered", filtered as f64),
        ("lookups_found", found as f64),
        ("lookups_passed_for_nothing", missed as f64),
    ]);
    // Of the tables that did not have the key, those that the filter spared.
    if filtered + missed > 0 {
        into.insert("filter_hit_ratio", filtered as f64 / (filtered + missed) as f64);
    }
    if cached + read > 0 {
        into.insert("cache_hit_ratio", cached as f64 / (cached + read) as f64);
    }
}
