//! Every planted bug is caught within a few seeds: the clients, faults and invariants of a run have teeth.
//!
//! For each bug there is a seed that found it, which comes first; what changes a run may need another one, hence the search behind it. A vote that is not
//! durable and a replica that votes at once after its start need more luck than that: see `stories.rs`; so do nodes that erase or make a replica by an old state: see `moves.rs`.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::super::run::{Plan, run};
use crate::raft::planted::{self, Bug};

/// Seeds within which a bug must be caught.
const SEEDS: u64 = 60;

/// Plans that give a bug its chance: what a seed would do anyway, but rather what matters to it.
fn plan(bug: Bug, random: &mut StdRng) -> Plan {
    let mut plan = Plan::random(random);
    plan.shape.founders = 3;
    plan.shape.groups = 1;
    plan.appetite.disks = true;
    plan.appetite.network = true;
    plan.appetite.clock_ms = 3_600_000;
    plan.duration = std::time::Duration::from_secs(5);
    plan.load.repeating = 3;
    plan.load.thinks_ms_max = 20;
    match bug {
        Bug::SkippedSync => plan.appetite.network = false,
        Bug::UnconfirmedRead | Bug::CommitAlone => plan.appetite.disks = false,
        Bug::EarlyPurge => {
            plan.shape.log_keep = 0;
            plan.shape.limits.snapshot_bytes = 512;
            plan.shape.large_memtables = true;
        }
        _ => {}
    }
    plan
}

/// Runs seeds until one finds the bug; which, after how many, and what it said.
fn find(bug: Bug, known: u64) -> Option<(u64, usize, String)> {
    let seeds = std::iter::once(known).chain((1..=SEEDS).filter(|seed| *seed != known));
    (1..).zip(seeds).find_map(|(tried, seed)| {
        let mut random = StdRng::seed_from_u64(seed);
        let plan = plan(bug, &mut random);
        let report = planted::with(bug, || run(&plan, random.random()));
        Some((seed, tried, report.violation?))
    })
}

/// Plants `bug`, which the seed `known` is known to find.
fn is_caught(bug: Bug, known: u64) {
    let began = std::time::Instant::now();
    let Some((seed, tried, how)) = find(bug, known) else {
        panic!("{bug:?} was not caught within {SEEDS} seeds");
    };
    let how: String = how.chars().take(300).collect();
    let took = began.elapsed();
    println!("{bug:?} was caught by seed {seed}, {tried} tried, after {took:?}: {how}");
}

#[test]
fn a_log_that_is_not_synced_is_caught() {
    is_caught(Bug::SkippedSync, 2);
}

#[test]
fn a_write_that_is_acknowledged_before_a_majority_has_it_is_caught() {
    is_caught(Bug::CommitAlone, 1);
}

#[test]
fn a_repeat_without_a_request_id_is_caught() {
    is_caught(Bug::BlindRepeat, 3);
}

#[test]
fn a_repeat_that_is_applied_again_is_caught() {
    is_caught(Bug::NoDedup, 1);
}

#[test]
fn replicas_that_take_the_time_from_their_own_clocks_are_caught() {
    is_caught(Bug::LocalClock, 1);
}

#[test]
fn a_leader_that_stamps_what_its_wall_clock_says_is_caught() {
    is_caught(Bug::RawClock, 1);
}

#[test]
fn a_read_that_nobody_confirmed_is_caught() {
    is_caught(Bug::UnconfirmedRead, 4);
}

#[test]
fn a_read_that_was_confirmed_before_it_began_is_caught() {
    is_caught(Bug::LateRead, 6);
}

#[test]
fn a_log_that_is_purged_before_the_engine_is_flushed_is_caught() {
    is_caught(Bug::EarlyPurge, 1);
}
