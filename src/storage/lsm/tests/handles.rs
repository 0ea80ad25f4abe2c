//! More tables than handles: each is opened again and again, and nobody who reads notices.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::storage::Direction;
use crate::storage::lsm::Inspection;
use crate::storage::lsm::files::FileNumber;
use crate::storage::testing::value;
use crate::util::fs::sim::{Effect, Fault, Operation};
use crate::util::fs::{FileSystem, RealFileSystem};

/// Keys of each table.
const KEYS: u8 = 8;

/// Settings under which a read that finds nothing in memory asks a file, and nothing is compacted unasked.
fn few(open_files_max: usize) -> LsmOptions {
    LsmOptions {
        threads: 0,
        compaction: false,
        cache_bytes: 0,
        open_files_max,
        log_segment_bytes: 64 << 10,
        ..LsmOptions::new(1)
    }
}

fn opened(fs: &SimFileSystem, open_files_max: usize) -> LsmEnvironment {
    LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, few(open_files_max)).expect("opens")
}

/// A table with keys of its own. Its values say whose they are, and each has a block for itself.
fn add_table(engine: &dyn StorageEngine, owner: u8, round: u8) {
    for number in 0..KEYS {
        let batch = put(&[round, number], &[owner + round; 9_000]);
        engine.write(&batch, Durability::None).expect("writes");
    }
    engine.flush().expect("flushes");
}

/// A table that lies over all others: with it they are merged, and without merely moved.
fn add_table_over_all(engine: &dyn StorageEngine) {
    let mut batch = put(&[0], b"first");
    batch.put(&[&[255]], &[b"last"], None);
    engine.write(&batch, Durability::None).expect("writes");
    engine.flush().expect("flushes");
}

/// Reads one key of the table that was added in `round`.
fn check(reader: &dyn crate::storage::Reader, owner: u8, round: u8) {
    let found = value(reader, &[round, round % KEYS]);
    assert_eq!(found, Some(vec![owner + round; 9_000]), "of {owner}, round {round}");
}

/// The table files of the first engine, in the order of their numbers.
fn tables(fs: &dyn FileSystem) -> Vec<PathBuf> {
    let directory = Path::new(DIRECTORY).join("engine-1");
    let names = fs.list(&directory).expect("lists");
    let tables = names.iter().filter(|name| FileNumber::parse(name, "sst").is_some());
    tables.map(|name| directory.join(name)).collect()
}

#[test]
fn a_scan_reads_on_in_tables_that_were_compacted_away_and_closed() {
    const ROUNDS: u8 = 3;
    let fs = SimFileSystem::new(1);
    let environment = opened(&fs, 1);
    let engine = environment.open("main").expect("opens");
    (0..ROUNDS).for_each(|round| add_table(&*engine, 0, round));
    add_table_over_all(&*engine);
    let expected = rows(&*engine);
    let mut scan = engine.scan(KeyRange::ALL, Direction::Forward).expect("scans");
    let mut seen = Vec::new();
    let before = tables(&fs);
    engine.compact(KeyRange::ALL).expect("compacts");
    // Whoever flushes removes what nobody needs.
    add_table(&*engine, 0, ROUNDS);
    let is_there = |path: &PathBuf| fs.exists(path).expect("asked");
    assert!(before.iter().all(is_there), "the scan needs them");
    assert_eq!(rows(&*engine).len(), expected.len() + usize::from(KEYS));
    while let Some(entry) = scan.next().expect("its tables are there") {
        seen.push((entry.key.to_vec(), entry.value.to_vec(), None));
    }
    assert_eq!(seen, expected);
    drop(scan);
    add_table(&*engine, 0, ROUNDS + 1);
    assert!(!before.iter().any(is_there), "nobody needs them");
    check(&*engine, 0, 0);
    assert_eq!(environment.status().figures["files_open"], 1.0);
}

#[test]
fn copies_and_views_need_no_more_handles_than_there_are() {
    const ROUNDS: u8 = 6;
    let fs = SimFileSystem::new(1);
    let environment = opened(&fs, 1);
    let engine = environment.open("main").expect("opens");
    (0..ROUNDS).for_each(|round| add_table(&*engine, 0, round));
    add_table_over_all(&*engine);
    let view = engine.view().expect("freezes");
    let copy = Path::new("/node/copy");
    engine.checkpoint(copy).expect("is copied");
    engine.compact(KeyRange::ALL).expect("compacts");
    add_table(&*engine, 100, 0);
    environment.install("copy", copy).expect("is verified and installed");
    let copy = environment.open("copy").expect("opens");
    assert_eq!(rows(&*copy), rows(&*view));
    (0..ROUNDS).rev().for_each(|round| check(&*view, 0, round));
    check(&*engine, 100, 0);
    check(&*copy, 0, 0);
    assert_eq!(environment.status().figures["files_open"], 1.0);
    drop((view, engine, copy, environment));
    let inspection = Inspection::open(Arc::new(fs), DIRECTORY).expect("opens");
    let verification = inspection.verify();
    assert!(verification.is_sound(), "{:?}", verification.damage);
}

#[test]
fn a_table_that_cannot_be_opened_again_fails_who_reads_it_and_nobody_else() {
    let fs = SimFileSystem::new(1);
    let environment = opened(&fs, 2);
    let (engine, other) =
        (environment.open("main").expect("opens"), environment.open("other").expect("opens"));
    (0..4).for_each(|round| add_table(&*engine, 0, round));
    add_table(&*other, 50, 0);
    (0..4).for_each(|round| check(&*engine, 0, round));
    let named = tables(&fs).swap_remove(0);
    let names_it = |error: &Error| matches!(error, Error::Io { path, .. } | Error::Corruption { file: path, .. } if *path == named);
    let all_others_are_well = || {
        (1..4).for_each(|round| check(&*engine, 0, round));
        check(&*other, 50, 0);
        assert!(engine.status().writable && other.status().writable);
        other.write(&put(b"w", b"1"), Durability::Sync).expect("writes go on");
    };
    let fault = || Fault::next(Operation::Open, &named.to_string_lossy(), Effect::Io);

    fs.inject(fault());
    let error = engine.get(&[0, 0]).expect_err("it cannot be opened");
    assert!(names_it(&error), "{error}");
    all_others_are_well();
    check(&*engine, 0, 0);
    all_others_are_well();

    add_table_over_all(&*engine);
    // A compaction reads it as well, and is done when it is asked for again.
    fs.inject(fault());
    let error = engine.compact(KeyRange::ALL).expect_err("it cannot be opened");
    assert!(names_it(&error), "{error}");
    all_others_are_well();
    check(&*engine, 0, 0);
    all_others_are_well();

    // Another file under its name is damage, not other data; and no file at all is an error.
    fs.remove(&named).expect("removes");
    fs.hard_link(&tables(&fs)[1], &named).expect("links");
    let error = engine.get(&[0, 0]).expect_err("it is another file");
    assert!(matches!(error, Error::Corruption { .. }) && names_it(&error), "{error}");
    all_others_are_well();
    fs.remove(&named).expect("removes");
    let error = engine.get(&[0, 0]).expect_err("there is none");
    assert!(names_it(&error), "{error}");
    all_others_are_well();
    assert_eq!(fs.faults_struck(), 2);
}

/// Table files below `directory` that this process has open.
#[cfg(target_os = "linux")]
fn descriptors(directory: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").expect("lists");
    // Other tests close theirs meanwhile.
    let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    targets
        .filter(|target| target.starts_with(directory) && target.to_string_lossy().contains(".sst"))
        .count()
}

#[cfg(target_os = "linux")]
#[test]
fn engines_share_a_few_descriptors_among_readers_while_tables_come_and_go() {
    const LIMIT: u8 = 3;
    const ENGINES: u8 = 4;
    const ROUNDS: u8 = 6;
    const READERS: usize = 4;
    const READS: usize = 400;
    // Each reader may hold one more, and who compacts one that it reads and one that it writes.
    const MOST: usize = LIMIT as usize + READERS + 2;
    let home = tempfile::tempdir().expect("made");
    let home = home.path().canonicalize().expect("it is there");
    let options = LsmOptions { log: false, ..few(usize::from(LIMIT)) };
    let environment =
        LsmEnvironment::open(Arc::new(RealFileSystem), &home, options).expect("opens");
    let engines: Vec<_> =
        (0..ENGINES).map(|owner| environment.open(&format!("e-{owner}")).expect("opens")).collect();
    let owners = || engines.iter().zip((0..).step_by(50));
    for (engine, owner) in owners() {
        (0..ROUNDS).for_each(|round| add_table(&**engine, owner, round));
        add_table_over_all(&**engine);
    }
    let views: Vec<_> = engines.iter().map(|engine| engine.view().expect("freezes")).collect();
    let (running, most) = (AtomicUsize::new(READERS), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let (engines, views, running) = (&engines, &views, &running);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(reader as u64);
                for _ in 0..READS {
                    let (owner, round) =
                        (random.random_range(0..ENGINES), random.random_range(0..ROUNDS));
                    check(&*engines[usize::from(owner)], owner * 50, round);
                    check(&*views[usize::from(owner)], owner * 50, round);
                }
                running.fetch_sub(1, Ordering::Release);
            });
        }
        for (engine, _) in owners() {
            engine.compact(KeyRange::ALL).expect("compacts");
        }
        while running.load(Ordering::Acquire) > 0 {
            most.fetch_max(descriptors(&home), Ordering::Relaxed);
        }
    });
    let most = most.into_inner();
    assert!(most <= MOST, "{most} descriptors");
    assert_eq!(descriptors(&home), usize::from(LIMIT), "nobody reads");
    assert_eq!(environment.status().figures["files_open"], f64::from(LIMIT));
    drop((views, engines, environment));
    assert_eq!(descriptors(&home), 0);
}
