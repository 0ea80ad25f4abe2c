//! The log against the bare calls that it is made of, in one run on one disk: synced commits of many threads against a
//! loop of write and fdatasync into a preallocated file, buffered commits against a loop of write.
//!
//! `cargo bench --bench wal [-- DIRECTORY]`; the directory decides which disk is measured (default: `target`). The
//! parts alternate over [`ROUNDS`] rounds; printed are medians and the ratio to the bare loop of the same round.
//! Compare ratios, not digits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstore::util::fs::{FileSystem, RealFileSystem};
use kvstore::wal::{Error, Kind, Level, Options, Owner, Wal};

const ROUNDS: usize = 5;
const SYNC_TIME: Duration = Duration::from_millis(1000);
const BUFFERED_RECORDS: u64 = 300_000;
const BODY: [u8; 116] = [7; 116];
const FILE_BYTES: u64 = 64 << 20;

fn main() {
    // cargo passes `--bench`.
    let dir = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let dir = PathBuf::from(dir.unwrap_or_else(|| "target".to_owned())).join("wal-bench");
    let mut table = Table::default();
    for _ in 0..ROUNDS {
        let bare = fresh(&dir, bare_syncs);
        table.add("write + fdatasync, bare", bare, 1.0, "syncs/s");
        for threads in [1, 4, 16, 64] {
            let (rate, group) = fresh(&dir, |dir| synced(dir, threads));
            let name = format!("Sync, {threads} threads");
            table.add(&name, rate, rate / bare, "commits/s");
            table.add(&format!("{name}: commits for each fdatasync"), group, 0.0, "");
        }
        let bare = fresh(&dir, bare_writes);
        table.add("write, bare", bare, 1.0, "writes/s");
        for threads in [1, 4] {
            let rate = fresh(&dir, |dir| buffered(dir, threads, true));
            table.add(&format!("Buffered, {threads} threads"), rate, rate / bare, "commits/s");
        }
        let rate = fresh(&dir, |dir| buffered(dir, 1, false));
        table.add("append only, 1 thread", rate, rate / bare, "appends/s");
    }
    table.print();
}

/// Runs `work` in an empty directory.
fn fresh<T>(dir: &Path, work: impl FnOnce(&Path) -> T) -> T {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir).expect("the directory is writable");
    let result = work(dir);
    let _ = std::fs::remove_dir_all(dir);
    result
}

fn per_second(count: u64, since: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let count = count as f64;
    count / since.elapsed().as_secs_f64()
}

/// The bytes that a record of [`BODY`] takes in the log.
const RECORD_BYTES: usize = (25 + BODY.len()).next_multiple_of(8);

fn bare_syncs(dir: &Path) -> f64 {
    let file = RealFileSystem.create(&dir.join("bare")).expect("created");
    file.allocate(FILE_BYTES).expect("allocated");
    file.sync_data().expect("synced");
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < SYNC_TIME {
        file.write_at(&[7; RECORD_BYTES], count * RECORD_BYTES as u64).expect("written");
        file.sync_data().expect("synced");
        count += 1;
    }
    per_second(count, begin)
}

fn bare_writes(dir: &Path) -> f64 {
    let file = RealFileSystem.create(&dir.join("bare")).expect("created");
    file.allocate(FILE_BYTES).expect("allocated");
    let begin = Instant::now();
    for n in 0..BUFFERED_RECORDS {
        file.write_at(&[7; RECORD_BYTES], n * RECORD_BYTES as u64).expect("written");
    }
    per_second(BUFFERED_RECORDS, begin)
}

fn open(dir: &Path) -> Wal {
    let fs: Arc<dyn FileSystem> = Arc::new(RealFileSystem);
    Wal::open(fs, dir, Options::new(1), |_| Ok::<_, Error>(())).expect("opened").0
}

fn synced(dir: &Path, threads: u64) -> (f64, f64) {
    let wal = open(dir);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let wal = &wal;
            scope.spawn(move || {
                while begin.elapsed() < SYNC_TIME {
                    commit(wal, thread, Level::Sync);
                }
            });
        }
    });
    let counts = wal.status().counts;
    let rate = per_second(counts.records, begin);
    let syncs = u32::try_from(counts.sync_group.count()).expect("a second's worth");
    let records = u32::try_from(counts.records).expect("a second's worth");
    (rate, f64::from(records) / f64::from(syncs))
}

fn commit(wal: &Wal, owner: u64, level: Level) {
    let position = wal.append(Owner(owner), Kind::FIRST, &[&BODY]).expect("appended");
    wal.commit(position, level).expect("committed");
}

fn buffered(dir: &Path, threads: u64, committed: bool) -> f64 {
    let wal = open(dir);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let wal = &wal;
            scope.spawn(move || {
                for _ in 0..BUFFERED_RECORDS / threads {
                    if committed {
                        commit(wal, thread, Level::Buffered);
                    } else {
                        wal.append(Owner(thread), Kind::FIRST, &[&BODY]).expect("appended");
                    }
                }
            });
        }
    });
    per_second(BUFFERED_RECORDS, begin)
}

/// Rows in the order in which they first came, a value for each round.
#[derive(Default)]
struct Table {
    rows: Vec<(String, &'static str, Vec<(f64, f64)>)>,
}

impl Table {
    fn add(&mut self, name: &str, value: f64, ratio: f64, unit: &'static str) {
        let row = self.rows.iter().position(|(known, ..)| known == name).unwrap_or_else(|| {
            self.rows.push((name.to_owned(), unit, Vec::new()));
            self.rows.len() - 1
        });
        self.rows[row].2.push((value, ratio));
    }

    fn print(mut self) {
        for (name, unit, rounds) in &mut self.rows {
            rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (low, high) = (rounds[0].0, rounds[rounds.len() - 1].0);
            let value = rounds[rounds.len() / 2].0;
            rounds.sort_by(|a, b| a.1.total_cmp(&b.1));
            let ratio = rounds[rounds.len() / 2].1;
            let ratio = if ratio > 0.0 { format!("x{ratio:.2}") } else { String::new() };
            println!("{name:<48} {value:>11.1} {unit:<10} ({low:.1} to {high:.1}) {ratio}");
        }
    }
}
