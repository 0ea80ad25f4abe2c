//! Power loss and kill at every step of the story, and at every step of the recovery after it.

use super::*;

/// Ways in which each crash is survived.
const SURVIVALS: u64 = 6;

/// Opens a disk after a crash; the state must be that of the last commit, or of the one that was under way.
fn check(disk: &SimFileSystem, told: &Told, what: &str) -> Option<Engine> {
    let Some(expected) = &told.state else {
        // Nobody was told that there is an engine.
        return Engine::open(disk).ok();
    };
    let engine = Engine::open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = state(&engine.manifest);
    let either = found == *expected || Some(&found) == told.pending.as_ref();
    assert!(either, "{what}: found {found:?}\nexpected {expected:?}\nor {:?}", told.pending);
    assert_eq!(names(disk), names_of(&engine.manifest), "{what}");
    Some(engine)
}

/// Crashes at every step of the opening; whatever survives that opens to the same state.
fn crash_while_opening(disk: &SimFileSystem, told: &Told, what: &str) {
    let whole = disk.restart_killed();
    let Some(engine) = check(&whole, told, what) else { return };
    let expected = Told { state: Some(state(&engine.manifest)), ..Told::default() };
    for step in 0..whole.steps() {
        let disk = disk.restart_killed();
        disk.crash_at(step);
        let failed = open(&disk);
        assert!(failed.is_err(), "{what}: step {step} fails");
        for survival in 0..2 {
            let what = format!("{what}, then step {step} of the opening, survival {survival}");
            check(&disk.restart(survival), &expected, &what);
        }
    }
}

#[test]
fn after_power_loss_at_any_step_the_tree_is_that_of_the_last_commit_or_the_next() {
    let steps = {
        let fs = new_disk(1);
        assert!(tell(&fs).error.is_none());
        fs.steps()
    };
    let first = new_disk(1).steps();
    for step in first..steps {
        let fs = new_disk(1);
        fs.crash_at(step);
        let told = tell(&fs);
        assert!(fs.crashed());
        for survival in 0..SURVIVALS {
            let what = format!("crash at step {step}, survival {survival}");
            let disk = fs.restart(step * 100 + survival);
            crash_while_opening(&disk, &told, &what);
            // Life goes on.
            let Some(mut engine) = check(&disk, &told, &what) else { continue };
            let mut told = Told::default();
            for number in COMMITS..COMMITS + 2 {
                engine.step(number, &mut told).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            check(&disk.restart(survival), &told, &what);
        }
    }
}

#[test]
fn after_a_kill_at_any_step_what_the_opening_showed_survives_a_power_loss() {
    let steps = {
        let fs = new_disk(1);
        drop(tell(&fs));
        fs.steps()
    };
    for step in new_disk(1).steps()..steps {
        let fs = new_disk(1);
        fs.crash_at(step);
        let told = tell(&fs);
        let what = format!("kill at step {step}");
        let disk = fs.restart_killed();
        let Some(engine) = check(&disk, &told, &what) else { continue };
        let shown = Told { state: Some(state(&engine.manifest)), ..Told::default() };
        for survival in 0..SURVIVALS {
            check(&disk.restart(survival), &shown, &what);
        }
        // Also while opening: there it may be either, but it must open.
        let opening = fs.restart_killed();
        let opened_at = opening.steps();
        drop(Engine::open(&opening).expect("opened"));
        for at in opened_at..opening.steps() {
            let disk = fs.restart_killed();
            disk.crash_at(at);
            assert!(open(&disk).is_err());
            for survival in 0..SURVIVALS {
                let what = format!("{what}, then step {at} of the opening, survival {survival}");
                check(&disk.restart(survival), &told, &what);
            }
        }
    }
}
