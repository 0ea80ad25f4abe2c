//! Compares a cluster of kvstore with one of etcd on this machine: the same client, the same calls, rounds in which each system has its
//! turn at each row, the order turned by one with each round. `benches/README.md` says what is fair about it and what is not.
//!
//! A turn starts the processes of one system on empty directories, stores the keys, measures the rows and stops them, so that the other
//! one has machine and disk for itself.

#![expect(clippy::cast_precision_loss, reason = "counts of a benchmark, far below 2^53")]

mod client;
mod cluster;
mod idle;
mod keys;
mod machine;
mod options;
mod process;
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    dead_code,
    reason = "generated code"
)]
mod proto {
    tonic::include_proto!("proto");
}
mod report;
mod rows;

use std::process::ExitCode;
use std::time::Instant;

use client::Connections;
use cluster::Cluster;
use keys::Random;
use options::Options;
use report::Report;
use rows::ROWS;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// What can fail here is told to a person.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Who is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    Etcd,
    Kvstore,
}

impl System {
    pub const ALL: [Self; 2] = [Self::Etcd, Self::Kvstore];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Kvstore => "kvstore",
        }
    }
}

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
    let options = Options::parse(std::env::args().skip(1))?;
    machine::print(&options)?;
    runtime(options.threads)?.block_on(async {
        // Dropped, a run stops its processes.
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            outcome = perform(&options) => outcome,
            _ = interrupt.recv() => Err("interrupted".into()),
            _ = terminate.recv() => Err("terminated".into()),
        }
    })
}

/// One thread by itself needs no synchronisation, which leaves more of the machine to the servers.
fn runtime(threads: usize) -> Outcome<Runtime> {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    Ok(builder.worker_threads(threads).enable_all().build()?)
}

async fn perform(options: &Options) -> Outcome<()> {
    if let Some(time) = options.idle {
        idle::print_head(time);
        for system in &options.systems {
            idle::measure(*system, time, options).await?;
        }
        return Ok(());
    }
    println!(
        "{} nodes; {} callers over {} connections to each node; {} keys of {} bytes, uniform, values of {} bytes; {} rounds of {:?} after {:?}; seed {}",
        options.nodes,
        options.clients,
        options.connections,
        options.keys,
        keys::KEY_BYTES,
        keys::VALUE_BYTES,
        options.rounds,
        options.time,
        options.warm_up,
        options.seed
    );
    let mut report = Report::default();
    let mut seeds = Random::new(options.seed);
    for round in 0..options.rounds {
        // The same calls for both.
        let seed = seeds.next();
        let mut systems = options.systems.clone();
        let turn = round % systems.len();
        systems.rotate_left(turn);
        for system in systems {
            eprintln!("round {round}");
            self::turn(system, options, seed, &mut report).await?;
        }
    }
    match report.print(options) {
        0 => Ok(()),
        failed => Err(format!("{failed} calls failed: the figures are void").into()),
    }
}

/// One system's turn in a round.
async fn turn(system: System, options: &Options, seed: u64, report: &mut Report) -> Outcome<()> {
    machine::settle(&options.directory)?;
    let start = Instant::now();
    let mut cluster = Cluster::start(system, options, &options.settings)?;
    let mut connections = Connections::open(&mut cluster, options.connections).await?;
    let healthy = start.elapsed();
    rows::preload(&connections, options.keys, seed).await?;
    let stored = start.elapsed().saturating_sub(healthy);
    eprintln!("{:8} healthy after {healthy:.1?}, keys stored in {stored:.1?}", system.name());
    let mut seeds = Random::new(seed);
    for row in ROWS {
        let seed = seeds.next();
        if options.wants(row.name) {
            let figures = rows::measure(row, &mut cluster, &mut connections, options, seed).await?;
            report.add(row, system, figures);
        }
    }
    cluster.stop()
}
