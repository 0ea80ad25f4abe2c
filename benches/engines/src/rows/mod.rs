//! What is measured. A stage makes one database and measures some rows on it, one engine after the other.

mod delete;
mod fill;
pub mod process;
mod read;
mod sizes;
mod synced;
mod ycsb;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::contestants::{Budget, Class, Contestant, Kind, Outcome};
use crate::keys::{Random, Values, key};
use crate::options::Options;

/// What the figure of a row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Operations each second.
    Rate,
    /// Bytes for each byte of the user.
    Times,
    Milliseconds,
    Mebibytes,
}

impl Unit {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "/s",
            Self::Times => "x",
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
        }
    }

    /// Whether less is better.
    pub const fn is_cost(self) -> bool {
        !matches!(self, Self::Rate)
    }
}

/// One line of the report.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    /// How safe its writes are; `None`: it only reads.
    pub class: Option<Class>,
    pub unit: Unit,
}

/// A rate of writes, or of writes and reads.
const fn rate(name: &'static str) -> Row {
    Row { name, class: Some(Class::PageCache), unit: Unit::Rate }
}

/// A rate of reads.
const fn reads(name: &'static str) -> Row {
    Row { name, class: None, unit: Unit::Rate }
}

const fn cost(name: &'static str, unit: Unit) -> Row {
    Row { name, class: Some(Class::PageCache), unit }
}

/// Rows that share a database.
pub struct Stage {
    pub rows: &'static [Row],
    run: fn(&mut Run<'_>) -> Outcome<()>,
}

pub const STAGES: &[Stage] = &[
    fill::SEQUENTIAL,
    fill::RANDOM,
    fill::BATCH,
    read::CACHED,
    read::SMALL_CACHE,
    delete::STAGE,
    sizes::LARGE,
    sizes::HUGE,
    ycsb::STAGE,
    synced::STAGE,
    process::OPEN,
    process::MEMORY,
];

/// All rows, in the order of the report.
pub fn all() -> impl Iterator<Item = Row> {
    STAGES.iter().flat_map(|stage| stage.rows).copied()
}

/// One stage with one engine.
pub struct Run<'a> {
    pub kind: Kind,
    pub options: &'a Options,
    pub random: Random,
    pub values: Values,
    directory: PathBuf,
    /// What was measured.
    pub figures: Vec<(&'static str, f64)>,
}

impl<'a> Run<'a> {
    pub fn new(kind: Kind, options: &'a Options, values: &Values, seed: u64) -> Self {
        let directory = options.directory.join(kind.name());
        let (random, values) = (Random::new(seed), values.clone());
        Self { kind, options, random, values, directory, figures: Vec::new() }
    }

    /// Measures what is wanted of the stage, and erases the database.
    pub fn stage(&mut self, stage: &Stage) -> Outcome<()> {
        self.erase()?;
        (stage.run)(self)?;
        self.erase()
    }

    fn erase(&self) -> Outcome<()> {
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn wants(&self, row: &str) -> bool {
        self.options.wants(row)
    }

    /// The database of the stage, with the budget of everybody.
    fn open(&self) -> Outcome<Box<dyn Contestant>> {
        self.kind.open(&self.directory, self.options.budget)
    }

    fn open_with_cache(&self, cache_bytes: usize) -> Outcome<Box<dyn Contestant>> {
        self.kind.open(&self.directory, Budget { cache_bytes, ..self.options.budget })
    }

    /// Notes a figure.
    fn note(&mut self, row: &'static str, figure: f64) {
        self.figures.push((row, figure));
    }

    /// Does `work` for 0, 1, ... up to `count` times, or as often as the time for one row allows; notes the rate.
    fn measure(
        &mut self,
        row: &'static str,
        count: u64,
        mut work: impl FnMut(&mut Self, u64) -> Outcome<()>,
    ) -> Outcome<u64> {
        let start = Instant::now();
        let mut done = 0;
        while done < count && (done & 15 != 0 || start.elapsed() < self.options.row_seconds) {
            work(self, done)?;
            done += 1;
        }
        self.note(row, per_second(done, start.elapsed()));
        Ok(done)
    }

    /// Puts the keys with these indexes one by one and notes the rate. What does not fit into the time for one row is put
    /// in batches, so that all keys are there.
    fn fill(
        &mut self,
        db: &dyn Contestant,
        row: &'static str,
        order: &[u64],
        value_bytes: usize,
    ) -> Outcome<()> {
        let done = self.measure(row, order.len() as u64, |run, at| {
            let index = order[at as usize];
            db.put(&key(index), run.values.next(index, value_bytes), Class::PageCache)
        })?;
        self.prepare(db, &order[done as usize..], value_bytes)
    }

    /// Puts the keys with these indexes, as fast as it goes.
    fn prepare(&mut self, db: &dyn Contestant, order: &[u64], value_bytes: usize) -> Outcome<()> {
        for indexes in order.chunks(100) {
            let pair = |index: &u64| {
                (key(*index).to_vec(), self.values.next(*index, value_bytes).to_vec())
            };
            let pairs: Vec<_> = indexes.iter().map(pair).collect();
            db.put_batch(&pairs, Class::PageCache)?;
        }
        Ok(())
    }
}

pub fn per_second(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64().max(1e-9)
}

/// Fails unless a read gave what was written.
pub fn expect(what: &str, found: u64, expected: u64) -> Outcome<()> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found} instead of {expected}").into())
}
