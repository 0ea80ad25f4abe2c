//! Calls of the file system that fail, at every step: nothing that was promised is lost, a full disk is survived, and
//! whatever else fails ends writes but not reads.

use super::*;
use crate::util::fs::sim::{Effect, Fault};

const STEPS: usize = 100;

fn steps_of(seed: u64) -> u64 {
    let fs = SimFileSystem::new(seed);
    let mut workload = Workload::new(&fs, seed).expect("opens");
    for _ in 0..STEPS {
        workload.step().expect("nothing fails");
    }
    fs.steps()
}

/// The rows of each engine are those of the newest state, or of the one before if its write failed.
fn check_reads(workload: &Workload, what: &str) {
    for (engine, history) in workload.engines.iter().zip(&workload.histories) {
        let found = rows(&**engine);
        let near = history.states.iter().rev().take(2).any(|state| *state == found);
        assert!(near, "{what}: reads after the failure");
    }
}

fn run_with(effect: Effect, seed: u64) {
    let steps = steps_of(seed);
    let mut struck = 0;
    for step in 0..steps {
        let what = format!("{effect:?}, seed {seed}, step {step} of {steps}");
        let fs = SimFileSystem::new(seed);
        fs.inject(Fault::at_step(step, effect));
        let mut histories = vec![History::new(); NAMES.len()];
        if let Ok(mut workload) = Workload::new(&fs, seed) {
            for _ in 0..STEPS {
                match workload.step() {
                    Ok(()) => workload.check(),
                    Err(Error::DiskFull { .. }) if workload.engines.len() == NAMES.len() => {
                        workload.check();
                    }
                    Err(_) if workload.engines.len() < NAMES.len() => break,
                    Err(_) => {
                        check_reads(&workload, &what);
                        break;
                    }
                }
            }
            histories.clone_from(&workload.histories);
        }
        struck += fs.faults_struck();
        for survival in 0..2 {
            let fs = fs.restart(survival * 31 + step);
            let environment = open(&fs, seed).unwrap_or_else(|error| panic!("{what}: {error}"));
            survivors(&environment, &histories, &what);
        }
    }
    assert!(struck >= steps * 9 / 10, "{struck} of {steps} faults have struck");
}

#[test]
fn a_failed_call_at_any_step_loses_nothing_that_was_promised() {
    run_with(Effect::Io, 40);
    run_with(Effect::ShortWrite, 41);
}

#[test]
fn a_full_disk_at_any_step_loses_nothing_that_was_promised() {
    run_with(Effect::DiskFull, 42);
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    let fs = SimFileSystem::new(9);
    let mut workload = Workload::new(&fs, 9).expect("opens");
    for _ in 0..60 {
        workload.step().expect("nothing fails");
    }
    fs.set_capacity(fs.used());
    let mut refused = 0;
    for _ in 0..400 {
        match workload.step() {
            Ok(()) => {}
            Err(Error::DiskFull { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if workload.engines.len() == NAMES.len() {
            workload.check();
        }
    }
    assert!(refused > 0, "the disk was never full");
    fs.set_capacity(u64::MAX);
    for _ in 0..100 {
        workload.step().expect("there is room again");
        workload.check();
    }
}
