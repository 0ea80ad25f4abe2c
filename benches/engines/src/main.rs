//! Compares storage engines: one process, rounds in which each engine has its turn at each row, the order turned by one
//! with each round. `benches/README.md` says what is fair about it and what is not.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "counts and rates of a benchmark, far from the limits of either type"
)]

mod contestants;
mod keys;
mod options;
mod report;
mod rows;

use std::process::ExitCode;
use std::time::Instant;

use contestants::Outcome;
use keys::{Random, Values};
use options::Options;
use report::Report;
use rows::process::{self, Task};
use rows::{Run, STAGES};

// As in the server. RocksDB calls malloc of the C library.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if_eq("child").is_some() {
        let task = match arguments.next().as_deref() {
            Some("kill") => Task::Kill,
            Some("memory") => Task::Memory,
            other => return Err(format!("no task {other:?}").into()),
        };
        let options = Options::parse(arguments)?;
        let values = Values::new(options.seed);
        let kind = *options.engines.first().ok_or("no engine")?;
        return process::perform(task, &mut Run::new(kind, &options, &values, options.seed));
    }
    compare(&Options::parse(arguments)?)
}

fn compare(options: &Options) -> Outcome<()> {
    println!(
        "{} keys of 16 bytes with values of 100, {} records of 1 KiB, {} rounds, cache {} MiB, memtable {} MiB, seed {}",
        options.keys,
        options.records,
        options.rounds,
        options.budget.cache_bytes >> 20,
        options.budget.memtable_bytes >> 20,
        options.seed
    );
    let values = Values::new(options.seed);
    let mut seeds = Random::new(options.seed);
    let mut report = Report::default();
    for round in 0..options.rounds {
        for stage in STAGES {
            if !stage.rows.iter().any(|row| options.wants(row.name)) {
                continue;
            }
            // The same work for everybody.
            let seed = seeds.next();
            let mut engines = options.engines.clone();
            let turn = round % engines.len();
            engines.rotate_left(turn);
            for kind in engines {
                let mut run = Run::new(kind, options, &values, seed);
                let start = Instant::now();
                run.stage(stage).map_err(|error| {
                    format!("{}, {} and following: {error}", kind.name(), stage.rows[0].name)
                })?;
                report.add(kind, &run.figures);
                for (row, figure) in &run.figures {
                    eprintln!("round {round} {:16} {row:24} {figure:14.2}", kind.name());
                }
                eprintln!(
                    "round {round} {:16} took {:.1} s",
                    kind.name(),
                    start.elapsed().as_secs_f64()
                );
            }
        }
    }
    report.print(options);
    Ok(())
}
