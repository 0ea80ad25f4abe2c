//! A drawn workload of several owners, one step after the other, and what its caller may rely on at each moment.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::*;

/// Numbers from a seed (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// What the log has told its caller.
#[derive(Debug, Default, Clone)]
pub(super) struct Told {
    /// Every record that was appended, in order.
    pub(super) records: Vec<Seen>,
    /// How many of them are on stable storage, and how many survive a kill, for sure.
    pub(super) synced: usize,
    pub(super) written: usize,
    /// First position each owner still needs.
    pub(super) needed: BTreeMap<Owner, Position>,
    /// An append found the disk full, or could not make a segment for another reason; an operation found the log
    /// poisoned.
    pub(super) disk_full: u64,
    pub(super) not_made: u64,
    pub(super) poisoned: bool,
}

impl Told {
    /// `count` records have reached `level`.
    fn reached(&mut self, count: usize, level: Level) {
        self.written = self.written.max(count);
        if level == Level::Sync {
            self.synced = self.synced.max(count);
        }
    }

    /// Whether `seen` is what a log may have after a crash that takes all but `sure` of the records.
    pub(super) fn check(&self, seen: &[Seen], sure: usize) -> Result<(), String> {
        let Some(first) = seen.first() else {
            let lost = self.records[..sure].iter().find(|record| self.needs(record));
            return lost.map_or(Ok(()), |lost| Err(format!("{} is lost", lost.position)));
        };
        let start = self.records.iter().position(|record| record.position == first.position);
        let start = start.ok_or_else(|| format!("{} was never appended", first.position))?;
        if let Some(lost) = self.records[..start].iter().find(|record| self.needs(record)) {
            return Err(format!("{} was needed and is gone", lost.position));
        }
        for (expected, seen) in self.records[start..].iter().zip(seen) {
            if expected != seen {
                return Err(format!("{} became {}", expected.position, seen.position));
            }
        }
        let end = start + seen.len();
        if end > self.records.len() {
            return Err("more records than were appended".to_owned());
        }
        if end < sure {
            return Err(format!("{end} records are left of {sure} that were acknowledged"));
        }
        Ok(())
    }

    fn needs(&self, record: &Seen) -> bool {
        self.needed.get(&record.owner).is_none_or(|&needed| record.position >= needed)
    }
}

/// Runs `steps` steps drawn from `seed` against the log. `told` is kept up to date, so that it holds when a step fails.
pub(super) fn run(wal: &Wal, seed: u64, steps: u32, told: &mut Told) {
    let mut random = Random(seed);
    // What the end of an earlier log has left.
    take_called();
    for _ in 0..steps {
        match random.below(16) {
            0..=7 => append_one(wal, &mut random, told),
            8 | 9 => commit_one(wal, &mut random, told, Level::Sync),
            10 | 11 => commit_one(wal, &mut random, told, Level::Buffered),
            12 => note(told, wal.maintain()),
            13 => release_some(wal, &mut random, told),
            14 => register(wal, told),
            _ => _ = wal.drive(),
        }
        // What a callback said holds like a returned commit.
        for (count, level) in take_called() {
            told.reached(count, level);
        }
    }
}

thread_local! {
    static CALLED: RefCell<Vec<(usize, Level)>> = const { RefCell::new(Vec::new()) };
}

fn take_called() -> Vec<(usize, Level)> {
    CALLED.with_borrow_mut(std::mem::take)
}

fn note(told: &mut Told, outcome: Result<()>) {
    match outcome {
        Ok(()) | Err(Error::Io { operation: "remove", .. }) => {}
        Err(Error::DiskFull { .. }) => told.disk_full += 1,
        Err(Error::Poisoned { .. }) => told.poisoned = true,
        Err(error @ Error::Io { .. }) if error.changed_nothing() => told.not_made += 1,
        Err(error) => panic!("no step may fail so: {error}"),
    }
}

fn append_one(wal: &Wal, random: &mut Random, told: &mut Told) {
    let owner = Owner(random.below(3));
    let kind = Kind(16 + u8::try_from(random.below(4)).expect("small"));
    // Now and then one that is larger than a segment.
    let length = if random.below(24) == 0 { 3000 } else { random.below(300) };
    let number = told.records.len() as u64;
    let byte = |n: u64| ((n * 7 + number) % 251).to_le_bytes()[0];
    let body: Vec<u8> = (0..length).map(byte).collect();
    match wal.append(owner, kind, &[&body]) {
        Ok(position) => {
            assert!(!told.poisoned, "appended to a poisoned log");
            told.needed.entry(owner).or_insert(position);
            told.records.push(Seen { position, owner, kind, body });
        }
        Err(error) => note(told, Err(error)),
    }
}

fn commit_one(wal: &Wal, random: &mut Random, told: &mut Told, level: Level) {
    let count = told.records.len();
    if count == 0 {
        return;
    }
    // Mostly the newest.
    let index = count - 1 - usize::try_from(random.below(4)).expect("small").min(count - 1);
    let outcome = wal.commit(told.records[index].position, level);
    if outcome.is_ok() {
        told.reached(index + 1, level);
    }
    note(told, outcome);
}

fn release_some(wal: &Wal, random: &mut Random, told: &mut Told) {
    let count = told.records.len();
    if count == 0 {
        return;
    }
    // Only what is durable is released, as an engine that has flushed does, or a group that has purged.
    let index = usize::try_from(random.below(count as u64)).expect("small").min(told.synced);
    let Some(position) = told.records.get(index).map(|record| record.position) else { return };
    for owner in 0..3 {
        let needed = told.needed.entry(Owner(owner)).or_insert(position);
        *needed = (*needed).max(position);
        wal.release(Owner(owner), *needed);
    }
}

fn register(wal: &Wal, told: &Told) {
    let Some(last) = told.records.last() else { return };
    let count = told.records.len();
    let callback = move |outcome: Result<()>| {
        if outcome.is_ok() {
            CALLED.with_borrow_mut(|called| called.push((count, Level::Sync)));
        }
    };
    wal.on_level(last.position, Level::Sync, callback).expect("a position of the log");
}
