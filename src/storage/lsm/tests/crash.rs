//! Power losses at every step of a workload, and again at every step of the recovery.

use super::*;

const SEEDS: u64 = 3;
const STEPS: usize = 120;

/// Runs a workload that loses power at `step`; says what must be there.
fn run_until(fs: &SimFileSystem, seed: u64, step: u64) -> Vec<History> {
    fs.crash_at(step);
    let mut histories = vec![History::new(); NAMES.len()];
    let Ok(mut workload) = Workload::new(fs, seed) else { return histories };
    for _ in 0..STEPS {
        let outcome = workload.step();
        histories.clone_from(&workload.histories);
        if outcome.is_err() {
            assert!(fs.crashed(), "seed {seed}: {outcome:?}");
        }
        if fs.crashed() {
            break;
        }
        workload.check();
    }
    histories
}

fn steps_of(seed: u64) -> u64 {
    let fs = SimFileSystem::new(seed);
    run_until(&fs, seed, u64::MAX);
    fs.steps()
}

/// Opens what survived, compares, and goes on with it.
fn go_on(fs: &SimFileSystem, seed: u64, histories: &[History], what: &str) {
    let environment =
        open(fs, seed).unwrap_or_else(|error| panic!("{what}: {error}\n{}", fs.log_text()));
    let survived = survivors(&environment, histories, what);
    drop(environment);
    let mut workload = Workload::open(fs, seed ^ 1, survived)
        .unwrap_or_else(|error| panic!("{what}: opened a second time: {error}"));
    workload.check();
    for _ in 0..10 {
        workload.step().unwrap_or_else(|error| panic!("{what}: going on: {error}"));
        workload.check();
    }
    let histories = workload.histories.clone();
    // What was safe must be there after one more power loss.
    let environment = open(&fs.restart(seed), seed).expect("opens after another power loss");
    survivors(&environment, &histories, what);
}

#[test]
fn after_a_power_loss_at_any_step_what_was_synced_is_there_and_nothing_has_a_hole() {
    for seed in 0..SEEDS {
        let steps = steps_of(seed);
        assert!(steps > 100, "the workload of seed {seed} takes only {steps} steps");
        for step in 0..steps {
            let fs = SimFileSystem::new(seed);
            let histories = run_until(&fs, seed, step);
            for survival in 0..2 {
                let what = format!("seed {seed}, step {step} of {steps}, survival {survival}");
                go_on(&fs.restart(survival * 7919 + step), seed, &histories, &what);
            }
        }
    }
}

/// The same with flushes and compactions on threads of their own, several at a time: no two runs lose power at the same
/// place, and each loses it somewhere in the middle of them.
#[test]
fn after_a_power_loss_among_threads_what_was_synced_is_there_and_nothing_has_a_hole() {
    for seed in 40..70 {
        let fs = SimFileSystem::new(seed);
        fs.crash_at(seed * 7919 % 3000);
        let options = LsmOptions { threads: 2, ..simulated(seed) };
        let mut histories = vec![History::new(); NAMES.len()];
        let opened = LsmEnvironment::open(Arc::new(fs.clone()), DIRECTORY, options);
        let opened = opened.and_then(|opened| Workload::with(opened, seed, histories.clone()));
        if let Ok(mut workload) = opened {
            while !fs.crashed() {
                let outcome = workload.step();
                histories.clone_from(&workload.histories);
                assert!(outcome.is_ok() || fs.crashed(), "seed {seed}: {outcome:?}");
            }
        }
        for survival in 0..2 {
            let what = format!("seed {seed}, survival {survival}");
            go_on(&fs.restart(survival * 7919 + seed), seed, &histories, &what);
        }
    }
}

#[test]
fn a_second_power_loss_at_any_step_of_the_recovery_takes_nothing_more() {
    let seed = 7;
    let steps = steps_of(seed);
    for step in (0..steps).step_by(usize::try_from(steps / 12).expect("small")) {
        let fs = SimFileSystem::new(seed);
        let histories = run_until(&fs, seed, step);
        let first = fs.restart(step);
        let recovering = first.restart(1);
        let survived = {
            let environment = open(&recovering, seed).expect("opens");
            survivors(&environment, &histories, "undisturbed")
        };
        for second in 0..recovering.steps() {
            let what = format!("seed {seed}, step {step}, then step {second} of the recovery");
            let disturbed = first.restart(1);
            disturbed.crash_at(second);
            drop(open(&disturbed, seed));
            let environment = open(&disturbed.restart(second), seed)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            let found = survivors(&environment, &histories, &what);
            for (found, survived) in found.iter().zip(&survived) {
                assert_eq!(found.states.len(), survived.states.len(), "{what}: another state");
            }
        }
    }
}

#[test]
fn a_killed_process_loses_only_what_was_in_its_buffer() {
    for seed in 20..30 {
        let fs = SimFileSystem::new(seed);
        let mut workload = Workload::new(&fs, seed).expect("opens");
        for round in 0..STEPS {
            workload.step().expect("nothing fails");
            if round % 10 == 9 {
                let (engine, history) = (&workload.engines[0], &mut workload.histories[0]);
                let (batch, mut after) = history.next(&mut workload.random);
                engine.write(&batch, Durability::Buffered).expect("writes");
                let safe = history.safe;
                after.all_safe();
                *history = after;
                let environment = open(&fs.restart_killed(), seed).expect("opens");
                survivors(&environment, &workload.histories, &format!("seed {seed}"));
                workload.histories[0].safe = safe;
            }
        }
    }
}
