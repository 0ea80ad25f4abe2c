//! `name=value` arguments.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::rows::ROWS;
use crate::{Outcome, System};

/// What the command line may say, with the defaults.
pub const USAGE: &str = "\
cluster [quick] [name=value ...]
  systems=LIST       etcd, kvstore; default both
  rows=LIST          which rows, by comma, * stands for anything; default *
  rounds=NUMBER      how often each row is measured; default 5
  seconds=NUMBER     how long a row is measured; default 5
  warm-up=SECONDS    how long it runs before; default 1
  clients=NUMBER     callers with one call at a time each; default 64
  connections=NUMBER to each node; default 2
  threads=NUMBER     of the client; default 1
  nodes=NUMBER       of each system, 1 to 9; default 3
  n=NUMBER           keys; default 100000
  seed=NUMBER        default: another one each time
  dir=PATH           where the data goes, on a disk; default target/data in this package
  kvstore=PATH       the program; default target/release/kvstore of this repository
  etcd=PATH          the program; default etcd
  set=KEY=VALUE      a setting of kvstore; may be repeated
  idle=SECONDS       measures idle nodes for so long instead of the rows
  quick              n=1000 rounds=1 seconds=1, for a smoke test";

/// Nodes that `nodes=` may ask for.
const NODES_MAX: u64 = 9;

#[derive(Debug, Clone)]
pub struct Options {
    pub systems: Vec<System>,
    patterns: Vec<String>,
    pub rounds: usize,
    pub time: Duration,
    pub warm_up: Duration,
    pub clients: usize,
    pub connections: usize,
    pub threads: usize,
    pub nodes: usize,
    pub keys: u64,
    pub seed: u64,
    pub directory: PathBuf,
    pub kvstore: PathBuf,
    pub etcd: PathBuf,
    pub settings: Vec<String>,
    pub idle: Option<Duration>,
}

impl Options {
    pub fn parse(arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut options = Self {
            systems: System::ALL.to_vec(),
            patterns: vec!["*".to_owned()],
            rounds: 5,
            time: Duration::from_secs(5),
            warm_up: Duration::from_secs(1),
            clients: 64,
            connections: 2,
            threads: 1,
            nodes: 3,
            keys: 100_000,
            seed: RandomState::new().build_hasher().finish(),
            directory: package.join("target/data"),
            kvstore: package.join("../../target/release/kvstore"),
            etcd: "etcd".into(),
            settings: Vec::new(),
            idle: None,
        };
        for argument in arguments {
            options.take(&argument).map_err(|error| format!("{argument}: {error}\n{USAGE}"))?;
        }
        // The programs run in directories of their own.
        options.directory = std::path::absolute(&options.directory)?;
        for program in [&mut options.kvstore, &mut options.etcd] {
            if program.components().count() > 1 {
                *program = std::path::absolute(&*program)?;
            }
        }
        Ok(options)
    }

    fn take(&mut self, argument: &str) -> Outcome<()> {
        if argument == "quick" {
            (self.keys, self.rounds, self.time) = (1_000, 1, Duration::from_secs(1));
            return Ok(());
        }
        let (name, value) = argument.split_once('=').ok_or("no such argument")?;
        let whole = |largest| whole(value, largest);
        let seconds = || -> Outcome<Duration> {
            Duration::try_from_secs_f64(value.parse()?).map_err(Into::into)
        };
        match name {
            "systems" => self.systems = value.split(',').map(system).collect::<Outcome<_>>()?,
            "rows" => self.patterns = patterns(value)?,
            "rounds" => self.rounds = whole(1_000)?,
            "seconds" => self.time = seconds()?.max(Duration::from_millis(100)),
            "warm-up" => self.warm_up = seconds()?,
            "clients" => self.clients = whole(10_000)?,
            "connections" => self.connections = whole(1_000)?,
            "threads" => self.threads = whole(1_000)?,
            "nodes" => self.nodes = whole(NODES_MAX)?,
            "n" => self.keys = whole(1_000_000_000)? as u64,
            "seed" => self.seed = value.parse()?,
            "dir" => self.directory = value.into(),
            "kvstore" => self.kvstore = value.into(),
            "etcd" => self.etcd = value.into(),
            "set" => self.settings.push(value.to_owned()),
            "idle" => self.idle = Some(seconds()?.max(Duration::from_secs(1))),
            _ => return Err("no such argument".into()),
        }
        Ok(())
    }

    pub fn wants(&self, row: &str) -> bool {
        self.patterns.iter().any(|pattern| matches(pattern, row))
    }

    /// The program of a system.
    pub fn program(&self, system: System) -> &Path {
        match system {
            System::Etcd => &self.etcd,
            System::Kvstore => &self.kvstore,
        }
    }
}

fn whole(value: &str, largest: u64) -> Outcome<usize> {
    let number: u64 = value.replace('_', "").parse()?;
    if !(1..=largest).contains(&number) {
        return Err(format!("from 1 to {largest}").into());
    }
    Ok(usize::try_from(number)?)
}

fn system(name: &str) -> Outcome<System> {
    System::ALL
        .into_iter()
        .find(|system| system.name() == name)
        .ok_or_else(|| format!("no system {name}; there are etcd and kvstore").into())
}

fn patterns(list: &str) -> Outcome<Vec<String>> {
    let patterns: Vec<String> = list.split(',').map(str::to_owned).collect();
    for pattern in &patterns {
        if !ROWS.iter().any(|row| matches(pattern, row.name)) {
            let names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
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
