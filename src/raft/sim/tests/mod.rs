//! Many seeds of clusters under faults, and bugs on purpose, which must be found.
//!
//! `cargo test` runs a few seeds. For more, on all processors:
//!
//! ```text
//! KVSTORE_SIM_SEEDS=2000 cargo test --profile soak --lib --locked -- --nocapture sim::tests::clusters
//! ```
//!
//! | variable | means |
//! |---|---|
//! | `KVSTORE_SIM_SEEDS=n` | so many seeds |
//! | `KVSTORE_SIM_FIRST=n` | from this one on; otherwise from 0 |
//! | `KVSTORE_SIM_SEED=n` | this one alone |
//! | `KVSTORE_SIM_LOG=openraft=debug` | prints what the nodes log, with virtual times |
//!
//! A seed that fails is printed with the command that repeats it.

mod planted;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::run::{Report, run_seed};

/// Seeds of `cargo test`, beside [`FOUND`].
const SEEDS: u64 = 2;

/// Seeds that found something once: the time of a leader that had been cut off, brought back; a write that was applied after its repeat had been refused; a leader that
/// changed a group to which it belonged no more. The first two have a test of their own, for a seed shows something else when runs have changed.
const FOUND: [u64; 3] = [197, 2945, 5575];

/// From this many seeds on, everything that may go wrong has gone wrong somewhere.
const SEEDS_THAT_SHOW_ALL: u64 = 100;

/// A seed takes a second or two. One that takes so many does something again and again without a pause: its virtual time stands still. They are counted, not
/// measured, so that nothing is wrong when the process was stopped for a while.
const SEED_SECONDS_MAX: u32 = 120;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// How to see a seed again.
fn repeat(seed: u64) -> String {
    format!(
        "KVSTORE_SIM_SEED={seed} cargo test --profile soak --lib -- --nocapture sim::tests::clusters"
    )
}

/// Runs `seeds` on all processors and hands each report to `take`, in no order.
fn run_all(seeds: Vec<u64>, take: impl Fn(u64, Report) + Sync) {
    let seeds = Mutex::new(seeds.into_iter());
    let running = Mutex::new(BTreeMap::new());
    let (over, all_over) = sync_channel::<()>(0);
    let work = |_over| {
        loop {
            let Some(seed) = seeds.lock().next() else { return };
            running.lock().insert(seed, 0);
            let report = run_seed(seed);
            running.lock().remove(&seed);
            take(seed, report);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let over = over.clone();
            scope.spawn(|| work(over));
        }
        drop(over);
        while all_over.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
            for (seed, seconds) in &mut *running.lock() {
                *seconds += 1;
                if *seconds > SEED_SECONDS_MAX {
                    // A thread cannot be ended.
                    eprintln!("seed {seed} does not end; repeat with {}", repeat(*seed));
                    std::process::exit(1);
                }
            }
        }
    });
}

/// What happened in all runs together.
fn coverage(reports: &[Report]) -> Vec<(&'static str, u64)> {
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    vec![
        ("leaders", sum(|report| report.leaders)),
        ("crashes", sum(|report| report.deeds.crashes)),
        ("crashes within a call", sum(|report| report.deeds.torn)),
        ("crashes of nodes that start", sum(|report| report.deeds.crashed_starts)),
        ("failed disks", sum(|report| report.deeds.disk_errors)),
        ("nodes that joined", sum(|report| report.deeds.joins)),
        ("nodes that left", sum(|report| report.deeds.leaves)),
        ("nodes that were drained", sum(|report| report.deeds.drains)),
        ("nodes that were lost for good", sum(|report| report.deeds.losses)),
        ("replicas erased", sum(|report| report.erased)),
        ("cuts", sum(|report| report.deeds.cuts)),
        ("lost messages", sum(|report| report.traffic.lost)),
        ("snapshots installed", sum(|report| report.traffic.snapshots)),
        ("forwarded writes", sum(|report| report.traffic.forwarded)),
        ("answered", sum(|report| report.counts.answered)),
        ("failed", sum(|report| report.counts.failed)),
        ("unknown outcomes", sum(|report| report.counts.unknown)),
        ("outcomes settled by a repeat", sum(|report| report.counts.settled)),
        ("answered writes repeated", sum(|report| report.counts.repeated)),
        ("keys seen to expire", sum(|report| report.counts.expired)),
    ]
}

#[test]
fn clusters_keep_their_promises_whatever_goes_wrong() {
    let first = variable("KVSTORE_SIM_FIRST").unwrap_or(0);
    let seeds: Vec<_> = match (variable("KVSTORE_SIM_SEED"), variable("KVSTORE_SIM_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (first..first + count).collect(),
        (None, None) => (first..first + SEEDS).chain(FOUND).collect(),
    };
    let count = seeds.len() as u64;
    let began = Instant::now();
    let (reports, violations, virtual_ms) =
        (Mutex::new(Vec::new()), Mutex::new(Vec::new()), AtomicU64::new(0));
    run_all(seeds, |seed, report| {
        virtual_ms.fetch_add(report.took_ms, Ordering::Relaxed);
        if let Some(violation) = &report.violation {
            let text = format!("seed {seed}: {violation}\nrepeat with {}", repeat(seed));
            println!("{text}");
            violations.lock().push(text);
        }
        reports.lock().push(report);
    });
    let reports = reports.into_inner();
    println!(
        "{count} seeds, {} virtual seconds in {:?}",
        virtual_ms.into_inner() / 1_000,
        began.elapsed()
    );
    for (what, times) in coverage(&reports) {
        println!("{times:>8} {what}");
        // Otherwise it would show little.
        assert!(times > 0 || count < SEEDS_THAT_SHOW_ALL, "{what}: none in {count} seeds");
    }
    let violations = violations.into_inner();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

/// Every message, state, outcome and fault, at every millisecond.
#[test]
fn a_seed_runs_the_same_way_every_time() {
    let seeds = [0, 3, 7];
    let twice = seeds.into_iter().chain(seeds).collect();
    let shown = Mutex::new(BTreeMap::<u64, Vec<String>>::new());
    run_all(twice, |seed, report| {
        shown.lock().entry(seed).or_default().push(format!("{report:?}"));
    });
    for (seed, runs) in shown.into_inner() {
        assert_eq!(runs.len(), 2);
        assert_eq!(runs[0], runs[1], "seed {seed}");
    }
}
