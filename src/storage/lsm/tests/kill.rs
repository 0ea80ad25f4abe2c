//! A real process that is killed, again and again, on one directory: what it acknowledged is there, no batch is half
//! there, and nothing that survived is newer than something that was lost.
//!
//! The child is this test program once more, told by an environment variable to run [`the_child`]. Several threads
//! write there, each with one durability, while flushes and compactions go on; each acknowledged batch is a line to the
//! parent. `KVSTORE_TEST_KILLS` says how many rounds, `KVSTORE_TEST_SEED` which.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::storage::lsm::checkpoint;
use crate::storage::testing::value;
use crate::util::fs::{FileSystem, RealFileSystem};

const KILLS: u64 = 20;

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tells the child where to write.
const DIRECTORY_VARIABLE: &str = "KVSTORE_TEST_KILL_DIRECTORY";
const SEED_VARIABLE: &str = "KVSTORE_TEST_KILL_SEED";

/// Each writes to one engine, with one durability.
const WRITERS: [(usize, Durability); 6] = [
    (0, Durability::Sync),
    (0, Durability::Buffered),
    (0, Durability::None),
    (1, Durability::Sync),
    (1, Durability::Sync),
    (1, Durability::Buffered),
];

/// Keys of one batch, which are there together.
const PARTS: u64 = 4;

/// Batches of one writer that are kept.
const KEPT: u64 = 40;

/// By writer, the number of a batch.
type Numbers = [u64; WRITERS.len()];

fn open_at(directory: &Path, seed: u64) -> (LsmEnvironment, [Arc<dyn StorageEngine>; 2]) {
    let fs = Arc::new(RealFileSystem);
    let environment = LsmEnvironment::open(fs, directory, LsmOptions::tiny(seed))
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let engines = NAMES.map(|name| environment.open(name).expect("the engine opens"));
    (environment, engines)
}

fn newest_key(writer: usize) -> Vec<u8> {
    format!("newest/{writer}").into_bytes()
}

fn part_key(writer: usize, number: u64, part: u64) -> Vec<u8> {
    format!("batch/{writer}/{:04}/{part}", number % KEPT).into_bytes()
}

/// Batch `number` of a writer. It says which batches of the other writers were visible before.
fn batch_of(writer: usize, number: u64, before: Numbers) -> WriteBatch {
    let mut batch = WriteBatch::new();
    let numbers = before.map(u64::to_le_bytes).concat();
    batch.put(&[&newest_key(writer)], &[&number.to_le_bytes(), &numbers], None);
    for part in 0..PARTS {
        let padding = vec![part.to_le_bytes()[0]; (number % 200).to_le_bytes()[0].into()];
        let key = part_key(writer, number, part);
        batch.put(&[&key], &[&number.to_le_bytes(), &padding], None);
    }
    batch
}

/// The newest batch of a writer, and what it says of the others.
fn newest(engines: &[Arc<dyn StorageEngine>; 2], writer: usize) -> (u64, Numbers) {
    let Some(stored) = value(&*engines[WRITERS[writer].0], &newest_key(writer)) else {
        return (0, Numbers::default());
    };
    let words: Vec<u64> =
        stored.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    (words[0], words[1..].try_into().expect("a number of each writer"))
}

/// What the parent starts; by itself it does nothing.
#[test]
fn the_child() {
    let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from) else { return };
    let seed = std::env::var(SEED_VARIABLE).ok().and_then(|text| text.parse().ok());
    let (_environment, engines) = open_at(&directory, seed.expect("a number"));
    let visible: Vec<AtomicU64> =
        (0..WRITERS.len()).map(|writer| AtomicU64::new(newest(&engines, writer).0)).collect();
    std::thread::scope(|scope| {
        for (writer, &(engine, durability)) in WRITERS.iter().enumerate() {
            let (engine, visible) = (&engines[engine], &visible);
            scope.spawn(move || {
                loop {
                    let number = visible[writer].load(Ordering::SeqCst) + 1;
                    let before = std::array::from_fn(|other| visible[other].load(Ordering::SeqCst));
                    let batch = batch_of(writer, number, before);
                    engine.write(&batch, durability).expect("writes");
                    visible[writer].store(number, Ordering::SeqCst);
                    if durability != Durability::None {
                        // One write each, so that no line is torn but the last.
                        let line = format!("acknowledged {writer} {number}\n");
                        let _ = std::io::stdout().lock().write_all(line.as_bytes());
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut random = StdRng::seed_from_u64(7);
            loop {
                let engine = &engines[random.random_range(0..2)];
                match random.random_range(0..3) {
                    0 => engine.flush().expect("flushes"),
                    1 => engine.compact(KeyRange::new(b"batch/3", None)).expect("compacts"),
                    _ => std::thread::yield_now(),
                }
            }
        });
    });
}

/// The process; killed with its owner.
struct Victim {
    child: Child,
}

impl Victim {
    fn start(directory: &Path, seed: u64) -> Self {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "storage::lsm::tests::kill::the_child", "--nocapture", "--quiet"])
            .env(DIRECTORY_VARIABLE, directory)
            .env(SEED_VARIABLE, seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        Self { child }
    }

    /// Kills it once it has acknowledged `wanted` batches; what was acknowledged then is in `acknowledged`.
    fn kill_after(mut self, wanted: u64, acknowledged: &mut Numbers) -> u64 {
        let mut lines = BufReader::new(self.child.stdout.take().expect("a pipe"));
        let (deadline, mut count) = (Instant::now() + PATIENCE, 0);
        let mut line = String::new();
        while lines.read_line(&mut line).expect("a pipe") > 0 {
            if line.ends_with('\n')
                && let Some(rest) = line.strip_prefix("acknowledged ")
                && let Some((writer, number)) = rest.trim_end().split_once(' ')
            {
                let writer: usize = writer.parse().expect("a number");
                acknowledged[writer] = number.parse().expect("a number");
                count += 1;
                if count == wanted {
                    self.child.kill().expect("it is ours");
                }
            }
            assert!(Instant::now() < deadline, "only {count} of {wanted} after {PATIENCE:?}");
            line.clear();
        }
        assert!(count >= wanted, "the child ended by itself after {count} batches");
        count
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn what_a_killed_process_acknowledged_is_there_and_nothing_has_a_hole() {
    let rounds = number_of("KVSTORE_TEST_KILLS", KILLS);
    let seed = number_of("KVSTORE_TEST_SEED", 1);
    let mut random = StdRng::seed_from_u64(seed);
    let root = tempfile::tempdir().expect("a temporary directory");
    let directory = root.path().join("data");
    let mut acknowledged = Numbers::default();
    let mut total = 0;
    for round in 0..rounds {
        let what = format!("KVSTORE_TEST_SEED={seed}, round {round}");
        let options: u64 = random.random_range(0..1 << 32);
        let wanted = random.random_range(1..400);
        total += Victim::start(&directory, options).kill_after(wanted, &mut acknowledged);
        // Other settings than those of the writer: nothing of them is needed to read.
        let (_environment, engines) = open_at(&directory, options + 1);
        let survived: [_; WRITERS.len()] = std::array::from_fn(|writer| newest(&engines, writer));
        for (writer, (number, before)) in survived.iter().enumerate() {
            assert!(
                *number >= acknowledged[writer],
                "{what}: writer {writer} has {number}, acknowledged was {}",
                acknowledged[writer]
            );
            for (other, seen) in before.iter().enumerate() {
                let (there, _) = survived[other];
                assert!(
                    there >= *seen,
                    "{what}: batch {number} of {writer} is there, {seen} of {other} before it is not"
                );
            }
            check_batches(&*engines[WRITERS[writer].0], writer, *number, &what);
            acknowledged[writer] = *number;
        }
        if round % 5 == 4 {
            verify(root.path(), &*engines[0], round);
        }
    }
    println!("{rounds} kills, {total} acknowledged batches, none lost");
}

/// The batches of a writer up to the newest are there, each of them whole.
fn check_batches(engine: &dyn StorageEngine, writer: usize, newest: u64, what: &str) {
    for number in newest.saturating_sub(KEPT - 1).max(1)..=newest {
        for part in 0..PARTS {
            let stored = value(engine, &part_key(writer, number, part));
            let stored = stored.and_then(|stored| stored.first_chunk().copied());
            assert_eq!(
                stored.map(u64::from_le_bytes),
                Some(number),
                "{what}: part {part} of batch {number} of writer {writer}"
            );
        }
    }
}

/// Reads every byte of every table.
fn verify(root: &Path, engine: &dyn StorageEngine, round: u64) {
    let copy = root.join(format!("copy-{round}"));
    engine.checkpoint(&copy).expect("copies");
    let fs: Arc<dyn FileSystem> = Arc::new(RealFileSystem);
    checkpoint::read(&fs, &copy).expect("all of it is sound");
    std::fs::remove_dir_all(&copy).expect("removes");
}
