//! The power goes at every step, and again at every step of what comes after: what anybody was told is durable is there,
//! over all groups one state that once was, without a hole, and without an entry that was cut off.

use super::workload::{Run, World};
use super::*;

const STEPS: u32 = 50;
const WORKLOADS: u64 = 12;
const SURVIVALS: u64 = 4;

/// A workload on a disk that held `world`, until it is over or the power goes at `step`.
fn run(fs: &SimFileSystem, world: World, seed: u64, step: Option<u64>) -> Option<Run> {
    if let Some(step) = step {
        fs.crash_at(step);
    }
    let mut run = Run::new(open(fs).ok()?, world, seed);
    let outcome = run.steps(STEPS);
    assert_eq!(outcome.is_err(), fs.crashed(), "only the crash may make a step fail: {outcome:?}");
    // Somebody may have been told before the end.
    while run.store.drive() {}
    let _ = run.ask();
    Some(run)
}

/// What is found after `fs` has crashed under `run`, and where.
fn survive(fs: &SimFileSystem, run: &Run, survival: u64, context: &str) -> (SimFileSystem, World) {
    let after = fs.restart(survival);
    let context = || format!("{context}, survival {survival}\n{}", fs.log_text());
    let store = open(&after).unwrap_or_else(|error| panic!("{error}: {}", context()));
    let found = run.found(&store).unwrap_or_else(|what| panic!("{what}: {}", context()));
    (after, found)
}

#[test]
fn cut_at_every_step_the_log_keeps_what_was_acknowledged() {
    let (mut sure, mut lost) = (0, 0);
    for workload in 0..WORKLOADS {
        let steps = {
            let fs = SimFileSystem::new(workload);
            run(&fs, World::new(), workload, None).expect("opened");
            fs.steps()
        };
        for step in 0..=steps {
            let fs = SimFileSystem::new(workload);
            let Some(run) = run(&fs, World::new(), workload, Some(step)) else { continue };
            sure += usize::from(run.sure > 0);
            for survival in 0..SURVIVALS {
                let context = format!("workload {workload}, step {step}");
                let (_, found) = survive(&fs, &run, survival, &context);
                lost += usize::from(found != *run.world());
            }
        }
    }
    assert!(sure > 200 && lost > 200, "the workloads show nothing: {sure} sure, {lost} lost");
}

#[test]
fn cut_again_while_it_opens_and_goes_on_the_log_keeps_what_was_acknowledged_by_then() {
    for workload in 0..WORKLOADS / 3 {
        let steps = {
            let fs = SimFileSystem::new(workload);
            run(&fs, World::new(), workload, None).expect("opened");
            fs.steps()
        };
        // Every seventh first crash is enough: behind each are some hundred second ones.
        for first in (0..=steps).step_by(7) {
            let fs = SimFileSystem::new(workload);
            let Some(before) = run(&fs, World::new(), workload, Some(first)) else { continue };
            let context = format!("workload {workload}, step {first}");
            let (_, world) = survive(&fs, &before, first, &context);
            let mut second = 0;
            loop {
                let again = fs.restart(first);
                let opened = run(&again, world.clone(), workload + 100, Some(second));
                let after = again.restart(second);
                let store = open(&after).expect("the log opens");
                let context = || format!("{context}, then step {second}\n{}", again.log_text());
                match &opened {
                    Some(run) => run.found(&store).map(|_| ()),
                    None => super::workload::check(&store, &world),
                }
                .unwrap_or_else(|what| panic!("{what}: {}", context()));
                if !again.crashed() {
                    break;
                }
                second += 1;
            }
        }
    }
}
