//! The workloads of YCSB (Cooper et al., SoCC '10) with values of 1 KiB, by one thread and by four.
//!
//! | | reads | updates | inserts | scans | read, then write | keys |
//! |---|---|---|---|---|---|---|
//! | A | 50 % | 50 % | | | | zipfian |
//! | B | 95 % | 5 % | | | | zipfian |
//! | C | 100 % | | | | | zipfian |
//! | F | 50 % | | | | 50 % | zipfian |
//! | D | 95 % | | 5 % | | | latest |
//! | E | | | 5 % | 95 %, of 1 to 100 | | zipfian |
//!
//! All on one database, in this order, first by one thread and then by four, without rest in between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{Run, Stage, per_second, rate, reads};
use crate::contestants::{Class, Contestant, Outcome};
use crate::keys::{Random, Values, Zipfian, scramble, touch, user_key};

const VALUE_BYTES: usize = 1 << 10;

pub const STAGE: Stage = Stage {
    rows: &[
        rate("ycsb-a-1"),
        rate("ycsb-b-1"),
        reads("ycsb-c-1"),
        rate("ycsb-f-1"),
        rate("ycsb-d-1"),
        rate("ycsb-e-1"),
        rate("ycsb-a-4"),
        rate("ycsb-b-4"),
        reads("ycsb-c-4"),
        rate("ycsb-f-4"),
        rate("ycsb-d-4"),
        rate("ycsb-e-4"),
    ],
    run: workloads,
};

/// Percent of each operation; the rest are scans.
#[derive(Clone, Copy)]
struct Mix {
    reads: u64,
    updates: u64,
    inserts: u64,
    read_writes: u64,
    latest: bool,
}

const fn mix(workload: u8) -> Mix {
    let (reads, updates, inserts, read_writes) = match workload {
        b'a' => (50, 50, 0, 0),
        b'b' => (95, 5, 0, 0),
        b'c' => (100, 0, 0, 0),
        b'd' => (95, 0, 5, 0),
        b'e' => (0, 0, 5, 0),
        _ => (50, 0, 0, 50),
    };
    Mix { reads, updates, inserts, read_writes, latest: workload == b'd' }
}

fn workloads(run: &mut Run<'_>) -> Outcome<()> {
    let db = run.open()?;
    let records = run.options.records;
    for indexes in (0..records).collect::<Vec<_>>().chunks(100) {
        let pair = |index: &u64| {
            (user_key(*index).to_vec(), run.values.next(*index, VALUE_BYTES).to_vec())
        };
        db.put_batch(&indexes.iter().map(pair).collect::<Vec<_>>(), Class::PageCache)?;
    }
    db.settle()?;
    let zipfian = Zipfian::new(records);
    let next = AtomicU64::new(records);
    for row in STAGE.rows {
        if !run.wants(row.name) {
            continue;
        }
        let name = row.name.as_bytes();
        let (workload, threads) = (name[5], u64::from(name[7] - b'0'));
        let operations = if workload == b'e' { records / 10 } else { records };
        let (mix, start) = (mix(workload), Instant::now());
        let done = std::thread::scope(|scope| -> Outcome<u64> {
            let running: Vec<_> = (0..threads)
                .map(|_| {
                    let mut client = Client {
                        db: &*db,
                        next: &next,
                        zipfian: &zipfian,
                        records,
                        random: Random::new(run.random.next()),
                        values: run.values.clone(),
                    };
                    let (share, seconds) = (operations / threads, run.options.row_seconds);
                    scope.spawn(move || -> Outcome<u64> {
                        let mut done = 0;
                        while done < share && (done & 15 != 0 || start.elapsed() < seconds) {
                            client.operation(mix)?;
                            done += 1;
                        }
                        Ok(done)
                    })
                })
                .collect();
            running.into_iter().map(|thread| thread.join().map_err(|_| "a client panicked")?).sum()
        })?;
        run.note(row.name, per_second(done, start.elapsed()));
    }
    Ok(())
}

struct Client<'a> {
    db: &'a dyn Contestant,
    /// The index of the next insert.
    next: &'a AtomicU64,
    zipfian: &'a Zipfian,
    records: u64,
    random: Random,
    values: Values,
}

impl Client<'_> {
    fn operation(&mut self, mix: Mix) -> Outcome<()> {
        let choice = self.random.below(100);
        let reads = mix.reads;
        let updates = reads + mix.updates;
        let inserts = updates + mix.inserts;
        if choice < reads {
            let index = self.existing(mix.latest);
            self.read(index)
        } else if choice < updates {
            let index = self.existing(mix.latest);
            self.write(index)
        } else if choice < inserts {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            self.write(index)
        } else if choice < inserts + mix.read_writes {
            let index = self.existing(mix.latest);
            self.read(index)?;
            self.write(index)
        } else {
            self.scan()
        }
    }

    /// A popular key. Which ones are, is scattered over all of them; with `latest`, those that were inserted last.
    fn existing(&mut self, latest: bool) -> u64 {
        let rank = self.zipfian.next(&mut self.random);
        if latest {
            return (self.next.load(Ordering::Relaxed) - 1).saturating_sub(rank);
        }
        scramble(rank) % self.records
    }

    fn read(&self, index: u64) -> Outcome<()> {
        let mut found = None;
        self.db.get(&user_key(index), &mut |value| found = Some(touch(value)))?;
        // What another thread is inserting just now may not be there yet.
        if found.is_some_and(|found| found != index) || (found.is_none() && index < self.records) {
            return Err(format!("record {index}: read {found:?}").into());
        }
        Ok(())
    }

    fn write(&mut self, index: u64) -> Outcome<()> {
        let value = self.values.next(index, VALUE_BYTES);
        self.db.put(&user_key(index), value, Class::PageCache)
    }

    fn scan(&mut self) -> Outcome<()> {
        let start = self.existing(false);
        let limit = 1 + self.random.below(100);
        let count = self.db.scan(&user_key(start), limit, &mut |_, value| _ = touch(value))?;
        if count == 0 {
            return Err(format!("scan from record {start}: nothing").into());
        }
        Ok(())
    }
}
