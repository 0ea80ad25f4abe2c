//! Damage to a whole database: every byte of every file flipped, every file cut, emptied, swapped with another of its kind,
//! replaced by an older copy of itself, removed. What is then opened and read is right, or refused with the name of the
//! file; never a wrong or a missing value, no panic, no memory without bound.
//!
//! # What cannot be told
//!
//! * The end of the log, beyond what its last sound record vouches for, may look like anything after a power loss. Damage
//!   there takes away writes that nothing vouches for yet, from the newest on: [`Extent::Log`], for the log only, and only
//!   down to the last synced write: later records were written after its sync, and say so.
//! * An older copy of a file is a sound file. That of a manifest or of the catalogue shows by what the log has, or by
//!   tables that are gone; where all that is newer was flushed and the log was cut since, nothing shows. The only segment
//!   of a log, removed or older, is a log that ends earlier.
//!
//! By default one byte in five is flipped, and fewer of the zeros that are reserved space. `KVSTORE_TEST_SEED` chooses
//! which, `KVSTORE_TEST_EVERY_BYTE=1` leaves out nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::storage::lsm::checkpoint;
use crate::storage::lsm::testing::allocations;
use crate::storage::testing::{put, rows};
use crate::storage::{Direction, Reader};
use crate::util::fs::sim::Operation;
use crate::util::fs::{FileSystem, read_file};

/// No single allocation is larger: windows and buffers have up to 256 KiB, and a file of the sample is read whole.
const ALLOCATION_BYTES_MAX: usize = 1 << 20;

/// Of a run of zeros so many bytes are flipped.
const ZEROS: usize = 4;

/// Of the others one in so many, another one with each `KVSTORE_TEST_SEED`.
const STEP: usize = 5;

/// Rows of both engines.
type Content = [Vec<Row>; 2];

/// A database that has everything, and what can be read from it.
struct Sample {
    fs: SimFileSystem,
    /// Some writes ago.
    older: SimFileSystem,
    /// After each of the last writes, the newest last. The first is synced, the others are in the log, unsynced.
    contents: Vec<Content>,
}

fn options() -> LsmOptions {
    let mut options = LsmOptions { threads: 0, cache_bytes: 0, ..LsmOptions::tiny(3) };
    options.memtable_bytes = 2 << 10;
    options.memtables_bytes_max = 1 << 20;
    options.log_segment_bytes = 4096;
    options.log_bytes_max = 1 << 30;
    (options.picker.l0_tables, options.picker.base_bytes) = (2, 2 << 10);
    options
}

fn open_sample(fs: &SimFileSystem, options: LsmOptions) -> Result<LsmEnvironment> {
    LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, options)
}

fn batch(number: u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.advance_clock(Timestamp::from_millis(number));
    for part in 0..3 {
        let key = [b'k', (number * 7 % 32).to_le_bytes()[0], part];
        let expiry = (number % 5 == 1).then(|| Timestamp::from_millis(number + 20));
        batch.put(&[&key], &[&number.to_le_bytes(), &[part; 30]], expiry);
    }
    if number % 4 == 3 {
        batch.delete(&[&[b'k', (number * 3 % 32).to_le_bytes()[0], 1]]);
    }
    if number % 11 == 7 {
        batch.delete_range(&[b'k', 3], &[b'k', 5]);
    }
    batch
}

impl Sample {
    fn new() -> Self {
        let fs = SimFileSystem::new(1);
        let environment = open_sample(&fs, options()).expect("opens");
        let engines = NAMES.map(|name| environment.open(name).expect("opens"));
        let content = || [rows(&*engines[0]), rows(&*engines[1])];
        let write = |numbers: std::ops::Range<u64>, durability| {
            for number in numbers {
                engines[usize::from(number % 3 == 0)]
                    .write(&batch(number), durability)
                    .expect("writes");
            }
        };
        write(1..50, Durability::Sync);
        while environment.drive() {}
        let older = fs.restart_killed();
        write(50..70, Durability::Sync);
        engines.iter().for_each(|engine| engine.flush().expect("flushes"));
        let figures = engines[0].status().figures;
        let used = |level: &str| figures[level] > 0.0;
        let levels = ["l0_tables", "l1_tables", "l5_tables", "l6_tables"].map(used);
        assert!(levels.iter().filter(|used| **used).count() >= 2, "{figures:?}");
        write(70..83, Durability::Sync);
        let mut contents = vec![content()];
        for number in 83..86 {
            write(number..number + 1, Durability::Buffered);
            contents.push(content());
        }
        let fs = fs.restart_killed();
        Self { fs, older, contents }
    }

    /// All files but the lock.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files_in(&self.fs)
    }

    /// Opens and reads everything. What is read is the newest content, or what `extent` allows; returns what was refused.
    fn judge(&self, fs: &SimFileSystem, extent: Extent, what: &str) -> Vec<Error> {
        let (errors, used) = allocations(|| self.read_all(fs, extent, what));
        assert!(
            used.largest_bytes <= ALLOCATION_BYTES_MAX,
            "{what}: {} bytes at once",
            used.largest_bytes
        );
        errors
    }

    fn read_all(&self, fs: &SimFileSystem, extent: Extent, what: &str) -> Vec<Error> {
        let reading = LsmOptions { compaction: false, ..options() };
        let environment = match open_sample(fs, reading) {
            Ok(environment) => environment,
            Err(error) => return vec![error],
        };
        assert_eq!(environment.list().expect("lists"), NAMES, "{what}: an engine is missing");
        let mut errors = Vec::new();
        for (number, name) in NAMES.iter().enumerate() {
            let engine = environment.open(name).expect("it is listed");
            let newest = &self.contents.last().expect("some")[number];
            let allowed: Vec<&Vec<Row>> = match extent {
                Extent::Exact => vec![newest],
                Extent::Log => self.contents.iter().map(|content| &content[number]).collect(),
            };
            let views: [&dyn Reader; 2] = [&*engine, &*engine.view().expect("views")];
            for reader in views {
                check_reader(reader, &allowed, newest, &mut errors, what);
            }
            let copy = PathBuf::from(format!("/copy-{name}"));
            let checked = engine.checkpoint(&copy).and_then(|()| {
                let fs: Arc<dyn FileSystem> = Arc::new(fs.clone());
                checkpoint::read(&fs, &copy).map(drop)
            });
            errors.extend(checked.err());
        }
        errors
    }
}

/// Which contents may be read without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// The newest.
    Exact,
    /// Also those before some of the unsynced writes: what was damaged is the end of the log.
    Log,
}

impl Extent {
    /// What damage to this file may take: of the log, unsynced writes, whichever segment they are in.
    fn of(path: &Path) -> Self {
        let in_log = path.extension().is_some_and(|extension| extension == "wal");
        if in_log { Self::Log } else { Self::Exact }
    }
}

/// Reads in all ways; each one is right or refused.
fn check_reader(
    reader: &dyn Reader,
    allowed: &[&Vec<Row>],
    newest: &[Row],
    errors: &mut Vec<Error>,
    what: &str,
) {
    for direction in [Direction::Forward, Direction::Reverse] {
        match scan(reader, direction) {
            Ok(found) => assert!(allowed.contains(&&found), "{what}: {direction:?} is wrong"),
            Err(error) => errors.push(error),
        }
    }
    let keys = newest.iter().map(|(key, ..)| key.clone()).chain([b"absent".to_vec()]);
    let probes: Vec<Vec<u8>> = keys.step_by(3).collect();
    for key in &probes {
        let right = |rows: &&Vec<Row>| rows.iter().find(|row| row.0 == *key).cloned();
        match reader.get(key) {
            Ok(found) => {
                let found = found.map(|entry| {
                    let expiry = entry.expires_at.map(Timestamp::as_millis);
                    (key.clone(), entry.value.to_vec(), expiry)
                });
                assert!(allowed.iter().any(|rows| right(rows) == found), "{what}: get {key:?}");
            }
            Err(error) => errors.push(error),
        }
    }
}

fn scan(reader: &dyn Reader, direction: Direction) -> Result<Vec<Row>> {
    let mut scan = reader.scan(KeyRange::ALL, direction)?;
    let mut rows = Vec::new();
    while let Some(entry) = scan.next()? {
        let expiry = entry.expires_at.map(Timestamp::as_millis);
        rows.push((entry.key.to_vec(), entry.value.to_vec(), expiry));
    }
    if direction == Direction::Reverse {
        rows.reverse();
    }
    Ok(rows)
}

/// Whether the error names one of the files, in the database or in its copy.
fn assert_names(errors: &[Error], files: &[&Path], what: &str) {
    for error in errors {
        let text = error.to_string();
        let name = |path: &&Path| path.file_name().expect("a file").to_string_lossy().into_owned();
        assert!(files.iter().any(|path| text.contains(&name(path))), "{what}: {text}");
        assert!(matches!(error, Error::Corruption { .. }), "{what}: not damage: {text}");
    }
}

fn files_in(fs: &SimFileSystem) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut directories = vec![PathBuf::from(DIRECTORY)];
    while let Some(directory) = directories.pop() {
        for name in fs.list(&directory).expect("lists") {
            let path = directory.join(&name);
            match read_file(fs, &path, u64::MAX) {
                Ok(bytes) if name != "LOCK" => drop(files.insert(path, bytes)),
                Ok(_) => {}
                Err(_) => directories.push(path),
            }
        }
    }
    files
}

fn overwrite(fs: &SimFileSystem, path: &Path, bytes: &[u8]) {
    let file = fs.open_write(path).expect("opens");
    file.truncate(0).and_then(|()| file.write_at(bytes, 0)).expect("writes");
}

/// The offsets to damage: all, but of long runs of zeros only some.
fn places(bytes: &[u8]) -> Vec<usize> {
    if std::env::var_os("KVSTORE_TEST_EVERY_BYTE").is_some() {
        return (0..bytes.len()).collect();
    }
    let seed = std::env::var("KVSTORE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let phase = seed.unwrap_or(1_usize);
    let mut zeros = 0;
    let chosen = |(at, &byte): (usize, &u8)| {
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        let sampled = zeros <= ZEROS && (at + phase).is_multiple_of(STEP);
        (sampled || (at + phase).is_multiple_of(1009) || at + 2 > bytes.len()).then_some(at)
    };
    bytes.iter().enumerate().filter_map(chosen).collect()
}

#[test]
fn every_flipped_byte_is_refused_by_name_or_changes_nothing() {
    let sample = Sample::new();
    let (mut refused, mut flipped) = (0, 0);
    for (path, bytes) in sample.files() {
        let extent = Extent::of(&path);
        for (at, mask) in places(&bytes).into_iter().zip([0x01, 0x80, 0x10, 0xff].iter().cycle()) {
            let fs = sample.fs.restart_killed();
            fs.corrupt(&path, at as u64, *mask).expect("a byte of the file");
            let what = format!("{} at {at} of {}, mask {mask:#x}", path.display(), bytes.len());
            let errors = sample.judge(&fs, extent, &what);
            assert_names(&errors, &[&path], &what);
            refused += usize::from(!errors.is_empty());
            flipped += 1;
        }
    }
    println!("{flipped} bytes flipped, {refused} found");
    assert!(refused * 4 > flipped * 3, "of {flipped} only {refused} were found");
}

#[test]
fn every_file_that_was_cut_is_refused_by_name_or_nothing_is_missing() {
    let sample = Sample::new();
    for (path, bytes) in sample.files() {
        let extent = Extent::of(&path);
        for size in places(&bytes) {
            let fs = sample.fs.restart_killed();
            overwrite(&fs, &path, &bytes[..size]);
            let what = format!("{} cut to {size} of {}", path.display(), bytes.len());
            assert_names(&sample.judge(&fs, extent, &what), &[&path], &what);
        }
    }
}

#[test]
fn two_files_that_changed_places_are_refused_by_the_name_of_one() {
    let sample = Sample::new();
    let files = sample.files();
    let mut refused = 0;
    for (one, its) in &files {
        for (other, others) in files.range(one.clone()..).skip(1) {
            if one.extension() != other.extension() || its == others {
                continue;
            }
            let fs = sample.fs.restart_killed();
            overwrite(&fs, one, others);
            overwrite(&fs, other, its);
            let what = format!("{} and {} swapped", one.display(), other.display());
            let errors = sample.judge(&fs, Extent::Exact, &what);
            assert_names(&errors, &[one, other], &what);
            assert!(!errors.is_empty() || one.ends_with("CURRENT"), "{what}");
            // And one of them twice.
            let fs = sample.fs.restart_killed();
            overwrite(&fs, other, its);
            let what = format!("{} also under the name of {}", one.display(), other.display());
            let errors = sample.judge(&fs, Extent::Exact, &what);
            assert_names(&errors, &[one, other], &what);
            refused += usize::from(!errors.is_empty());
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn a_file_that_was_removed_is_refused_by_name_or_missed_by_nobody() {
    let sample = Sample::new();
    let files = sample.files();
    for path in files.keys() {
        let fs = sample.fs.restart_killed();
        fs.remove(path).expect("removes");
        let what = format!("{} removed", path.display());
        assert_names(&sample.judge(&fs, Extent::Exact, &what), &[path], &what);
    }
}

#[test]
fn an_older_copy_of_a_file_is_refused_or_changes_nothing() {
    let sample = Sample::new();
    let older = files_in(&sample.older);
    let mut different = 0;
    for (path, bytes) in sample.files() {
        let Some(old) = older.get(&path).filter(|old| **old != bytes) else { continue };
        let fs = sample.fs.restart_killed();
        overwrite(&fs, &path, old);
        let what = format!("an older {}", path.display());
        let errors = sample.judge(&fs, Extent::Exact, &what);
        println!("{what}: {errors:?}");
        different += 1;
    }
    assert!(different >= 2, "{different} files have an older copy");
}

#[test]
fn bits_that_flip_on_the_way_from_the_disk_are_found_and_the_next_read_is_right() {
    let sample = Sample::new();
    let table =
        sample.files().into_keys().find(|path| path.extension().is_some_and(|e| e == "sst"));
    let table = table.expect("there are tables");
    let fs = sample.fs.restart_killed();
    let environment =
        open_sample(&fs, LsmOptions { compaction: false, ..options() }).expect("opens");
    let engine = environment.open(NAMES[0]).expect("opens");
    // Nothing is cached: a read goes to the disk each time.
    fs.corrupt(&table, 5, 0x40).expect("a byte of the file");
    let error = scan(&*engine, Direction::Forward).expect_err("the damage is met");
    assert_names(&[error], &[&table], "while the bit is flipped");
    fs.corrupt(&table, 5, 0x40).expect("a byte of the file");
    let found = scan(&*engine, Direction::Forward).expect("reads again");
    assert_eq!(found, self::newest(&sample)[0]);
    engine.write(&put(b"z", b"1"), Durability::Sync).expect("it was never poisoned");
    assert!(fs.count(Operation::Read) > 0);
}

fn newest(sample: &Sample) -> &Content {
    sample.contents.last().expect("some")
}
