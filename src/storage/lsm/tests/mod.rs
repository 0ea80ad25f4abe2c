//! The engine as a whole: what only it can show. Everything here runs on the simulated file system, and but for
//! `background`, `soak` and one test each of `crash` and `handles` on one thread, so that a run repeats exactly: the background is driven by the workload.

mod background;
mod budgets;
mod crash;
mod damage;
mod faults;
mod fixtures;
mod handles;
mod kill;
mod life;
mod orders;
mod soak;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{LsmEnvironment, LsmOptions};
use crate::storage::testing::{Row, put, rows};
use crate::storage::{
    Durability, Environment, Error, KeyRange, Result, Seqno, StorageEngine, WriteBatch,
};
use crate::util::fs::sim::SimFileSystem;
use crate::util::time::Timestamp;

const DIRECTORY: &str = "/node/data";
const NAMES: [&str; 2] = ["one", "two"];

/// Settings for one thread, so small that a few writes do everything.
fn simulated(seed: u64) -> LsmOptions {
    LsmOptions { threads: 0, ..LsmOptions::tiny(seed) }
}

fn open(fs: &SimFileSystem, seed: u64) -> Result<LsmEnvironment> {
    LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, simulated(seed))
}

/// What an engine ought to hold after each write.
#[derive(Debug, Clone)]
struct History {
    entries: BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)>,
    clock: u64,
    /// What could be read after each write, the first before any.
    states: Vec<Vec<Row>>,
    /// The state that a power loss must leave at least.
    safe: usize,
}

impl History {
    fn new() -> Self {
        Self { entries: BTreeMap::new(), clock: 0, states: vec![Vec::new()], safe: 0 }
    }

    fn newest(&self) -> &Vec<Row> {
        self.states.last().expect("there is the empty one")
    }

    /// Everything that was written is safe now.
    fn all_safe(&mut self) {
        self.safe = self.states.len() - 1;
    }

    /// A batch of random changes, and the history after it. Each state holds the number of its write.
    fn next(&self, random: &mut StdRng) -> (WriteBatch, Self) {
        let (mut batch, mut after) = (WriteBatch::new(), self.clone());
        if random.random_ratio(1, 3) {
            after.clock += random.random_range(0..4);
            batch.advance_clock(Timestamp::from_millis(after.clock));
        }
        let mut put =
            |batch: &mut WriteBatch, key: Vec<u8>, value: Vec<u8>, expiry: Option<u64>| {
                batch.put(&[&key], &[&value], expiry.map(Timestamp::from_millis));
                after.entries.insert(key, (value, expiry));
            };
        put(&mut batch, b"number".to_vec(), self.states.len().to_string().into_bytes(), None);
        for _ in 0..random.random_range(0..5) {
            let key = vec![b'k', random.random_range(0..12)];
            let value = vec![random.random(); random.random_range(0..300)];
            let expires = random.random_ratio(1, 4);
            let expiry = expires.then(|| self.clock + random.random_range(0..6));
            put(&mut batch, key, value, expiry);
        }
        if random.random_ratio(1, 3) {
            let key = vec![b'k', random.random_range(0..12)];
            batch.delete(&[&key]);
            after.entries.remove(&key);
        }
        if random.random_ratio(1, 6) {
            let (start, end) = (random.random_range(0..12), random.random_range(0..12));
            batch.delete_range(&[b'k', start], &[b'k', end]);
            after
                .entries
                .retain(|key, _| !KeyRange::new(&[b'k', start], Some(&[b'k', end])).contains(key));
        }
        let visible = |(_, (_, expiry)): &(&Vec<u8>, &(Vec<u8>, Option<u64>))| {
            expiry.is_none_or(|at| at > after.clock)
        };
        let rows = after.entries.iter().filter(visible);
        let rows = rows.map(|(key, (value, expiry))| (key.clone(), value.clone(), *expiry));
        let rows = rows.collect();
        after.states.push(rows);
        (batch, after)
    }
}

/// Writes, flushes, compactions and copies of two engines, as a seed says.
struct Workload {
    environment: LsmEnvironment,
    engines: Vec<Arc<dyn StorageEngine>>,
    histories: Vec<History>,
    random: StdRng,
    /// Names its copies, which a workload before it on the same file system may have left.
    seed: u64,
    copies: usize,
}

impl Workload {
    /// Opens what is there, of which `histories` are known.
    fn open(fs: &SimFileSystem, seed: u64, histories: Vec<History>) -> Result<Self> {
        Self::with(open(fs, seed)?, seed, histories)
    }

    fn with(environment: LsmEnvironment, seed: u64, histories: Vec<History>) -> Result<Self> {
        let engines = NAMES.iter().map(|name| environment.open(name)).collect::<Result<_>>()?;
        let random = StdRng::seed_from_u64(seed);
        Ok(Self { environment, engines, histories, random, seed, copies: 0 })
    }

    fn new(fs: &SimFileSystem, seed: u64) -> Result<Self> {
        Self::open(fs, seed, vec![History::new(); NAMES.len()])
    }

    /// One step. After a [shortage](is_shortage) nothing has changed and it may go on; after any other error it may not.
    fn step(&mut self) -> Result<()> {
        let which = self.random.random_range(0..NAMES.len());
        match self.random.random_range(0..40) {
            0 => self.engines[which].flush().map(|()| self.histories[which].all_safe()),
            1 => {
                let range = [b'k', self.random.random_range(0..12)];
                self.engines[which].compact(KeyRange::new(&range, None))?;
                self.histories[which].all_safe();
                Ok(())
            }
            2 => self.copy(which),
            3..8 => {
                self.environment.drive();
                Ok(())
            }
            _ => self.write(which),
        }
    }

    fn write(&mut self, which: usize) -> Result<()> {
        let (batch, after) = self.histories[which].next(&mut self.random);
        let durability = match self.random.random_range(0..6) {
            0 => Durability::Sync,
            1 => Durability::Buffered,
            _ => Durability::None,
        };
        match self.engines[which].write(&batch, durability) {
            Ok(_) => {
                self.histories[which] = after;
                if durability == Durability::Sync {
                    self.histories[which].all_safe();
                }
                Ok(())
            }
            Err(error) => {
                if !is_shortage(&error) && !matches!(error, Error::Poisoned { .. }) {
                    // It may be visible, and may survive.
                    self.histories[which] = History { safe: self.histories[which].safe, ..after };
                }
                Err(error)
            }
        }
    }

    /// Replaces an engine by a copy of itself.
    fn copy(&mut self, which: usize) -> Result<()> {
        self.copies += 1;
        let directory = format!("/node/copy-{}-{}", self.seed, self.copies);
        self.engines[which].checkpoint(Path::new(&directory))?;
        // The checkpoint holds what the flush before it made durable.
        self.histories[which].all_safe();
        let engine = self.engines.remove(which);
        drop(engine);
        let installed = self.environment.install(NAMES[which], Path::new(&directory));
        let opened = self.environment.open(NAMES[which]);
        self.engines.insert(which, opened?);
        installed
    }

    fn check(&self) {
        for (engine, history) in self.engines.iter().zip(&self.histories) {
            assert_eq!(rows(&**engine), *history.newest());
        }
    }
}

fn is_shortage(error: &Error) -> bool {
    matches!(error, Error::DiskFull { .. } | Error::NoHandles { .. })
}

/// Looks at what survived of each engine: a state there was, not before the safe one. The histories after it.
fn survivors(environment: &LsmEnvironment, histories: &[History], what: &str) -> Vec<History> {
    let names = environment.list().expect("lists");
    let survivor = |(name, history): (&&str, &History)| {
        if !names.contains(&(*name).to_owned()) {
            assert_eq!(history.safe, 0, "{what}: engine {name} is gone");
            return History::new();
        }
        let engine = environment.open(name).unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = rows(&*engine);
        let number = history.states.iter().rposition(|state| *state == found);
        let number = number.unwrap_or_else(|| panic!("{what}: {name} is no state there was"));
        assert!(number >= history.safe, "{what}: {name} is {number}, {} is safe", history.safe);
        let mut entries = BTreeMap::new();
        for (key, value, expiry) in found {
            entries.insert(key, (value, expiry));
        }
        let clock = engine.clock().as_millis();
        let states = history.states[..=number].to_vec();
        History { entries, clock, safe: number, states }
    };
    NAMES.iter().zip(histories).map(survivor).collect()
}
