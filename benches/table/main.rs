//! What a hot table costs, against a ceiling: the same rows in one sorted array, searched by a binary search.
//!
//! `cargo bench --bench table`. All contestants of a row are measured in one process, in turns, five rounds; printed are
//! the median in nanoseconds for each operation, the range over rounds, and the ratio to the ceiling. The sources of the
//! engine are compiled in as they are, because nothing outside of the crate can see a table.
//!
//! Rows: 1,000,000 x (16 byte key, 100 byte value), about 116 MB, all in the cache; keys are asked for in random
//! order. Arguments: `rows=N`, `seed=N`.

#![allow(dead_code, unused_imports, reason = "the bench uses a part of what it includes")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "figures for people"
)]
#![allow(unfulfilled_lint_expectations, reason = "what the engine expects is allowed here")]
#![allow(clippy::disallowed_methods, reason = "a bench measures time")]
#![allow(missing_docs, unreachable_pub, reason = "nothing here is seen from outside")]

#[path = "../../src/storage/mod.rs"]
pub mod storage;
#[path = "../../src/util/mod.rs"]
pub mod util;
#[path = "../../src/wal/mod.rs"]
pub mod wal;

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use storage::lsm::cache::{BlockCache, Priority, Slots};
use storage::lsm::key::{InternalEntry, KeyHash};
use storage::lsm::options::{Compression, TableOptions};
use storage::lsm::table::{Access, Table, TableBuilder, TableUid};
use storage::{KeyRange, Seqno};
use util::fs::RealFileSystem;

const ROUNDS: usize = 5;
const SCAN_ENTRIES: usize = 10;

fn main() {
    let argument = |name: &str, default: u64| {
        let given = std::env::args().find_map(|a| a.strip_prefix(name)?.parse().ok());
        given.unwrap_or(default)
    };
    let rows = argument("rows=", 1_000_000);
    let seed = argument("seed=", 1);
    println!("{rows} rows of 16 + 100 bytes, seed {seed}, {ROUNDS} rounds");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bench = Bench::new(rows, seed, dir.path());
    bench.point_reads();
    bench.seeks();
    bench.scans();
    bench.cold_and_parts();
    builds(rows, dir.path());
}

/// Random numbers that repeat for a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn key(number: u64) -> [u8; 16] {
    format!("user{number:012}").into_bytes().try_into().expect("16 digits")
}

fn value(number: u64) -> [u8; 100] {
    let mut random = Random(number);
    let mut value = [0; 100];
    // Half random, so that compression has something to do.
    value[..50].iter_mut().for_each(|byte| *byte = random.next().to_le_bytes()[0]);
    value
}

fn build(path: &Path, rows: u64, options: TableOptions) -> u64 {
    let mut builder =
        TableBuilder::create(&RealFileSystem, path, TableUid(rows), options).expect("created");
    for number in 0..rows {
        // Even numbers only: the odd ones are missing keys that lie between.
        let (key, value) = (key(number * 2), value(number));
        let entry = InternalEntry::put(&key, Seqno(number + 1), &value, None);
        builder.add(&entry, KeyHash::of(&key)).expect("in order");
    }
    builder.finish().expect("finished").size_bytes
}

/// The ceiling: no blocks, no versions, no checksums, no cache.
struct Ceiling {
    keys: Vec<[u8; 16]>,
    values: Vec<u8>,
}

impl Ceiling {
    fn get(&self, key: &[u8; 16]) -> Option<&[u8]> {
        let index = self.keys.binary_search(key).ok()?;
        Some(&self.values[index * 100..(index + 1) * 100])
    }
}

struct Bench {
    ceiling: Ceiling,
    tables: Vec<(&'static str, Table)>,
    hits: Vec<[u8; 16]>,
    misses: Vec<[u8; 16]>,
}

impl Bench {
    fn new(rows: u64, seed: u64, dir: &Path) -> Self {
        let cache = BlockCache::new(8 << 30);
        let default = TableOptions::default();
        let variants = [
            ("table", default.clone()),
            ("without fingerprints", TableOptions { fingerprints: false, ..default.clone() }),
            ("without filter", TableOptions { filter_bits_per_key: 0, ..default.clone() }),
            ("16 KiB blocks", TableOptions { block_bytes: 16 << 10, ..default.clone() }),
            ("4 KiB blocks", TableOptions { block_bytes: 4 << 10, ..default.clone() }),
            ("cut index", TableOptions { index_bytes_max: 1, ..default }),
        ];
        let tables = variants.map(|(name, options)| {
            let path = dir.join(name);
            build(&path, rows, options);
            (name, Table::open(&RealFileSystem, &path, &cache, None).expect("sound"))
        });
        let mut random = Random(seed);
        let mut draw = || random.next() % rows * 2;
        let hits = (0..400_000).map(|_| key(draw())).collect();
        let misses = (0..400_000).map(|_| key(draw() + 1)).collect();
        let ceiling = Ceiling {
            keys: (0..rows).map(|number| key(number * 2)).collect(),
            values: (0..rows).flat_map(value).collect(),
        };
        let bench = Self { ceiling, tables: tables.into(), hits, misses };
        for (_, table) in &bench.tables {
            let mut cursor = Table::cursor(table, Access::Scan, KeyRange::ALL);
            let mut found = cursor.seek_to_first().expect("sound");
            while found {
                found = cursor.next().expect("sound");
            }
        }
        bench
    }

    fn point_reads(&self) {
        for (what, keys) in [("get, hit", &self.hits), ("get, miss", &self.misses)] {
            let mut race = Race::new(what, keys.len());
            race.add("ceiling", || {
                keys.iter().filter_map(|key| self.ceiling.get(key)).map(first).sum()
            });
            for (name, table) in &self.tables {
                race.add(name, move || keys.iter().map(|key| get(table, key)).sum());
            }
            race.run();
        }
    }

    fn seeks(&self) {
        let mut race = Race::new("seek + 10 next", self.hits.len() / 4);
        let keys = &self.misses[..self.hits.len() / 4];
        race.add("ceiling", || {
            let scan = |key| {
                let from = self.ceiling.keys.partition_point(|other| other < key);
                let to = (from + SCAN_ENTRIES).min(self.ceiling.keys.len());
                (from..to).map(|index| first(&self.ceiling.values[index * 100..])).sum::<u64>()
            };
            keys.iter().map(scan).sum()
        });
        for (name, table) in &self.tables {
            race.add(name, move || {
                let mut cursor = Table::cursor(table, Access::Scan, KeyRange::ALL);
                let mut sum = 0;
                for key in keys {
                    let mut found = cursor.seek(key, Seqno(1 << 50)).expect("sound");
                    for _ in 0..SCAN_ENTRIES {
                        let Some(entry) = cursor.entry().filter(|_| found) else { break };
                        sum += first(entry.value);
                        found = cursor.next().expect("sound");
                    }
                }
                sum
            });
        }
        race.run();
    }

    fn scans(&self) {
        let rows = self.ceiling.keys.len();
        for forward in [true, false] {
            let mut race = Race::new(if forward { "next" } else { "prev" }, rows);
            race.add("ceiling", || {
                let of = |index: usize| {
                    first(&self.ceiling.keys[index]) + first(&self.ceiling.values[index * 100..])
                };
                if forward { (0..rows).map(of).sum() } else { (0..rows).rev().map(of).sum() }
            });
            for (name, table) in &self.tables {
                for access in [Access::Scan, Access::Sequential] {
                    if access == Access::Sequential && *name != "table" {
                        continue;
                    }
                    let name = if access == Access::Scan { name } else { "table, past the cache" };
                    race.add(name, move || {
                        let mut cursor = Table::cursor(table, access, KeyRange::ALL);
                        let mut found =
                            if forward { cursor.seek_to_first() } else { cursor.seek_to_last() }
                                .expect("sound");
                        let mut sum = 0;
                        while found {
                            let Some(entry) = cursor.entry() else { break };
                            sum += first(entry.key) + first(entry.value);
                            found =
                                if forward { cursor.next() } else { cursor.prev() }.expect("sound");
                        }
                        sum
                    });
                }
            }
            race.run();
        }
    }

    /// Parts of a lookup, and one that misses the cache but not the page cache.
    fn cold_and_parts(&self) {
        let table = &self.tables[0].1;
        let mut race = Race::new("parts of a get", self.hits.len());
        race.add("hash", || self.hits.iter().map(|key| KeyHash::of(key).0 & 1).sum());
        race.add("hash + filter", || {
            let may = |key: &[u8; 16]| table.may_contain(KeyHash::of(key)).expect("sound");
            self.hits.iter().map(|key| u64::from(may(key))).sum()
        });
        race.add("get", || self.hits.iter().map(|key| get(table, key)).sum());
        race.run();
        slots(self.hits.len());
    }
}

fn get(table: &Table, key: &[u8; 16]) -> u64 {
    let mut sum = 0;
    table
        .get(key, KeyHash::of(key), Seqno(1 << 50), |entry| sum = first(entry.value))
        .expect("sound");
    sum
}

fn first(bytes: &[u8]) -> u64 {
    u64::from(bytes[0])
}

/// A block from the cache when all are in it.
fn slots(operations: usize) {
    const BLOCKS: u32 = 15_000;
    let cache = BlockCache::new(8 << 30);
    let slots: Slots<Vec<u8>> = Slots::new(&cache, BLOCKS, Priority::Data);
    for index in 0..BLOCKS {
        slots.get_or_read(index, || Ok((vec![1; 8192], 8192))).expect("no error is made");
    }
    let mut random = Random(3);
    let indexes: Vec<u32> =
        (0..operations).map(|_| (random.next() % u64::from(BLOCKS)) as u32).collect();
    let mut race = Race::new("a block from the cache", operations);
    race.add("borrowed", || {
        indexes.iter().filter_map(|&i| slots.get(i)).map(|block| first(&block)).sum()
    });
    race.add("owned", || {
        indexes.iter().filter_map(|&i| slots.get_owned(i)).map(|b| first(b.block())).sum()
    });
    race.run();
}

fn builds(rows: u64, dir: &Path) {
    println!("\nbuild of a table, synced");
    for (name, compression, filter) in [
        ("raw", Compression::None, 10),
        ("raw, no filter", Compression::None, 0),
        ("LZ4", Compression::Lz4, 10),
        ("Zstandard 1", Compression::Zstd(1), 10),
    ] {
        let options =
            TableOptions { compression, filter_bits_per_key: filter, ..TableOptions::default() };
        let path = dir.join(format!("build {name}"));
        let begin = Instant::now();
        let bytes = build(&path, rows, options);
        let seconds = begin.elapsed().as_secs_f64();
        let raw = (rows * 116) as f64;
        println!(
            "  {name:24} {:6.0} MB/s of rows, {:.2} of their size",
            raw / seconds / 1e6,
            bytes as f64 / raw
        );
        std::fs::remove_file(path).expect("removed");
    }
}

/// Contestants that take turns.
struct Race<'a> {
    what: &'a str,
    operations: usize,
    contestants: Vec<(String, Box<dyn Fn() -> u64 + 'a>)>,
}

impl<'a> Race<'a> {
    fn new(what: &'a str, operations: usize) -> Self {
        Self { what, operations, contestants: Vec::new() }
    }

    fn add(&mut self, name: &str, run: impl Fn() -> u64 + 'a) {
        self.contestants.push((name.to_owned(), Box::new(run)));
    }

    fn run(self) {
        println!("\n{}", self.what);
        let mut nanos = vec![Vec::new(); self.contestants.len()];
        for round in 0..ROUNDS {
            for turn in 0..self.contestants.len() {
                let index = (turn + round) % self.contestants.len();
                let begin = Instant::now();
                black_box((self.contestants[index].1)());
                nanos[index].push(begin.elapsed().as_nanos() as f64 / self.operations as f64);
            }
        }
        let mut ceiling = None;
        for ((name, _), mut nanos) in self.contestants.into_iter().zip(nanos) {
            nanos.sort_by(f64::total_cmp);
            let median = nanos[ROUNDS / 2];
            let ceiling = *ceiling.get_or_insert(median);
            let (low, high) = (nanos[0], nanos[ROUNDS - 1]);
            println!(
                "  {name:24} {median:8.1} ns  ({low:.1} to {high:.1})  {:.2} x",
                median / ceiling
            );
        }
    }
}
