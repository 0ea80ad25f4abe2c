//! `name=value` arguments.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::contestants::{Budget, Kind, Outcome};
use crate::rows;

/// What the command line may say, with the defaults.
pub const USAGE: &str = "\
engines [quick] [name=value ...]
  engines=LIST   which engines, by comma; default all
  rows=LIST      which rows, by comma, * stands for anything; default *
  n=NUMBER       keys of 16 bytes, most with values of 100; default 1000000
  records=NUMBER records of 1 KiB of the YCSB rows; default n / 5
  rounds=NUMBER  how often each row is measured; default 3
  cache=MIB      block cache; default 256
  memtable=MIB   memtable; default 64
  row-seconds=N  the longest that a row of point operations may take; default 30
  seed=NUMBER    default: another one each time
  dir=PATH       where the databases go; default engines-bench in the directory for temporary files
  quick          n=20000 rounds=1, for a smoke test";

#[derive(Debug, Clone)]
pub struct Options {
    pub engines: Vec<Kind>,
    patterns: Vec<String>,
    pub keys: u64,
    pub records: u64,
    pub rounds: usize,
    pub budget: Budget,
    pub row_seconds: Duration,
    pub synced_seconds: Duration,
    pub seed: u64,
    pub directory: PathBuf,
}

impl Options {
    pub fn parse(arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut options = Self {
            engines: Kind::ALL.to_vec(),
            patterns: vec!["*".to_owned()],
            keys: 1_000_000,
            records: 0,
            rounds: 3,
            budget: Budget { cache_bytes: 256 << 20, memtable_bytes: 64 << 20 },
            row_seconds: Duration::from_secs(30),
            synced_seconds: Duration::from_secs(2),
            seed: SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64,
            directory: std::env::temp_dir().join("engines-bench"),
        };
        for argument in arguments {
            options.take(&argument).map_err(|error| format!("{argument}: {error}\n{USAGE}"))?;
        }
        if options.records == 0 {
            options.records = options.keys / 5;
        }
        Ok(options)
    }

    fn take(&mut self, argument: &str) -> Outcome<()> {
        if argument == "quick" {
            (self.keys, self.rounds) = (20_000, 1);
            self.synced_seconds = Duration::from_millis(200);
            return Ok(());
        }
        let (name, value) = argument.split_once('=').ok_or("no such argument")?;
        let mebibytes = || -> Outcome<usize> { Ok(value.parse::<usize>()? << 20) };
        match name {
            "engines" => self.engines = value.split(',').map(kind).collect::<Outcome<_>>()?,
            "rows" => self.patterns = patterns(value)?,
            "n" => self.keys = at_least(value, 1_000)?,
            "records" => self.records = at_least(value, 1_000)?,
            "rounds" => self.rounds = at_least(value, 1)? as usize,
            "cache" => self.budget.cache_bytes = mebibytes()?,
            "memtable" => self.budget.memtable_bytes = mebibytes()?,
            "row-seconds" => self.row_seconds = Duration::from_secs(at_least(value, 1)?),
            "seed" => self.seed = value.parse()?,
            "dir" => self.directory = value.into(),
            _ => return Err("no such argument".into()),
        }
        Ok(())
    }

    /// The arguments for a child that works on the same with one engine.
    pub fn arguments(&self, kind: Kind) -> Vec<String> {
        vec![
            format!("engines={}", kind.name()),
            format!("n={}", self.keys),
            format!("cache={}", self.budget.cache_bytes >> 20),
            format!("memtable={}", self.budget.memtable_bytes >> 20),
            format!("seed={}", self.seed),
            format!("dir={}", self.directory.display()),
        ]
    }

    pub fn wants(&self, row: &str) -> bool {
        self.patterns.iter().any(|pattern| matches(pattern, row))
    }
}

fn at_least(value: &str, smallest: u64) -> Outcome<u64> {
    let number = value.replace('_', "").parse()?;
    if number < smallest {
        return Err(format!("at least {smallest}").into());
    }
    Ok(number)
}

fn kind(name: &str) -> Outcome<Kind> {
    let known = || Kind::ALL.map(Kind::name).join(", ");
    Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == name)
        .ok_or_else(|| format!("no engine {name}; there are {}", known()).into())
}

fn patterns(list: &str) -> Outcome<Vec<String>> {
    let patterns: Vec<String> = list.split(',').map(str::to_owned).collect();
    for pattern in &patterns {
        if !rows::all().any(|row| matches(pattern, row.name)) {
            let names: Vec<_> = rows::all().map(|row| row.name).collect();
            return Err(format!("no row {pattern}; there are {}", names.join(", ")).into());
        }
    }
    Ok(patterns)
}

/// Whether `name` is as `pattern` says, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    name.strip_prefix(head)
        .is_some_and(|rest| (0..=rest.len()).any(|skipped| matches(tail, &rest[skipped..])))
}
