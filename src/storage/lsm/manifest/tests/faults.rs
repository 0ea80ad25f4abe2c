//! Every call fails once, in every way. What was committed stays; what failed has happened or not; only a full disk found in time
//! lets the manifest go on.

use super::*;
use crate::util::fs::sim::{Effect, Fault, Operation};

const EFFECTS: [Effect; 5] = [
    Effect::Io,
    Effect::DiskFull,
    Effect::ShortWrite,
    Effect::ShortWriteDiskFull,
    Effect::NoHandles,
];

#[test]
fn a_failure_at_any_step_poisons_or_changes_nothing() {
    let steps = {
        let fs = new_disk(1);
        drop(tell(&fs));
        fs.steps()
    };
    let (mut poisoned, mut went_on) = (0, 0);
    for step in new_disk(1).steps()..steps {
        for effect in EFFECTS {
            let what = format!("{effect:?} at step {step}");
            let fs = new_disk(1);
            fs.inject(Fault::at_step(step, effect));
            let Ok(mut engine) = Engine::create(&fs) else { continue };
            let mut told = Told { state: Some(state(&engine.manifest)), ..Told::default() };
            for number in 0..COMMITS {
                let before = state(&engine.manifest);
                let Err(error) = engine.step(number, &mut told) else { continue };
                if told.pending.is_none() || engine.manifest.poison().is_none() {
                    // Writing a table, removing garbage, or no space for the edit.
                    let again = told.pending.is_some() || told.state.as_ref() == Some(&before);
                    assert!(engine.manifest.poison().is_none(), "{what}: {error}");
                    if again {
                        engine.step(number, &mut told).unwrap_or_else(|e| panic!("{what}: {e}"));
                    }
                    went_on += 1;
                    continue;
                }
                assert_eq!(state(&engine.manifest), before, "{what}");
                let again = engine.manifest.commit(&VersionEdit::default());
                assert!(matches!(again, Err(Error::Poisoned { .. })), "{what}: {again:?}");
                poisoned += 1;
                break;
            }
            for survival in 0..3 {
                let opened = open(&fs.restart(survival));
                let found = state(&opened.unwrap_or_else(|error| panic!("{what}: {error}")));
                let either =
                    Some(&found) == told.state.as_ref() || Some(&found) == told.pending.as_ref();
                assert!(either, "{what}: found {found:?}");
            }
        }
    }
    assert!(poisoned > 50 && went_on > 50, "{poisoned} poisoned, {went_on} went on");
}

#[test]
fn a_full_disk_is_found_before_anything_is_written() {
    for rewrite_bytes_min in [0, REWRITE_BYTES_MIN] {
        let fs = new_disk(1);
        let mut engine = Engine::create(&fs).expect("created");
        engine.manifest.rewrite_bytes_min = rewrite_bytes_min;
        let mut told = Told::default();
        let mut number = 0;
        // As much as fits.
        fs.set_capacity(fs.used() + 3 * RESERVE_BYTES);
        let error = loop {
            match engine.step(number, &mut told) {
                Ok(()) => number += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::DiskFull { .. }), "{error:?}");
        assert_eq!(engine.manifest.poison(), None);
        fs.set_capacity(u64::MAX);
        engine.step(number, &mut told).expect("there is room again");
        assert_eq!(Some(state(&open(&fs.restart(1)).expect("opened"))), told.state);
    }
}

#[test]
fn without_handles_the_manifest_there_is_goes_on_and_a_new_one_follows_later() {
    let operations = [(Operation::Create, ".manifest"), (Operation::Create, "CURRENT")];
    for (operation, path) in operations.into_iter().chain([(Operation::SyncDir, "")]) {
        let what = format!("{operation:?} {path}");
        let fs = new_disk(1);
        let mut engine = Engine::create(&fs).expect("created");
        engine.manifest.rewrite_bytes_min = u64::MAX;
        (0..9).for_each(|number| {
            let edit = engine.flush(number).expect("written");
            engine.manifest.commit(&edit).expect("committed");
        });
        let before = engine.manifest.current.number;
        engine.manifest.rewrite_bytes_min = 0;
        assert!(engine.manifest.is_large());
        let edit = engine.move_oldest();
        fs.inject(Fault::next(operation, path, Effect::NoHandles));
        engine.manifest.commit(&edit).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(fs.faults_struck(), 1, "{what}");
        assert_eq!(engine.manifest.current.number, before, "{what}: not a new one yet");
        assert_eq!(names(&fs), names_of(&engine.manifest), "{what}: nothing is left behind");
        assert_eq!(state(&open(&fs.restart(1)).expect("opened")), state(&engine.manifest));
        let edit = engine.move_oldest();
        engine.manifest.commit(&edit).expect("committed");
        assert!(engine.manifest.current.number > before, "{what}");
        assert_eq!(state(&open(&fs.restart(1)).expect("opened")), state(&engine.manifest));
    }
}

#[test]
fn a_manifest_whose_place_may_have_been_taken_ends_writing_also_for_want_of_a_handle() {
    let fs = new_disk(1);
    let mut engine = Engine::create(&fs).expect("created");
    engine.manifest.rewrite_bytes_min = u64::MAX;
    for number in 0..9 {
        let edit = engine.flush(number).expect("written");
        engine.manifest.commit(&edit).expect("committed");
    }
    engine.manifest.rewrite_bytes_min = 0;
    let before = state(&engine.manifest);
    let edit = engine.move_oldest();
    // The first sync is that of the names, the second one that of the new `CURRENT`.
    fs.inject(Fault::after(Operation::SyncDir, "", 1, Effect::NoHandles));
    let error = engine.manifest.commit(&edit).expect_err("nobody knows");
    assert!(matches!(error, Error::Io { operation: "replace", .. }), "{error:?}");
    assert!(engine.manifest.poison().is_some());
    assert_eq!(state(&engine.manifest), before);
    let found: Vec<_> =
        (0..20).map(|survival| state(&open(&fs.restart(survival)).expect("opened"))).collect();
    let unchanged = found.iter().filter(|found| **found == before).count();
    assert!(unchanged > 0 && unchanged < found.len(), "it may have happened, or not");
}

#[test]
fn tables_whose_names_cannot_be_synced_for_want_of_a_handle_are_not_committed() {
    let fs = new_disk(1);
    let mut engine = Engine::create(&fs).expect("created");
    engine.manifest.rewrite_bytes_min = u64::MAX;
    let before = state(&engine.manifest);
    let flush = engine.flush(0).expect("written");
    fs.set_handles(false);
    let error = engine.manifest.commit(&flush).expect_err("there is none");
    assert!(matches!(error, Error::NoHandles { .. }), "{error:?}");
    assert_eq!(engine.manifest.poison(), None);
    for survival in 0..10 {
        assert_eq!(state(&open(&fs.restart(survival)).expect("opened")), before);
    }
    fs.set_handles(true);
    engine.manifest.commit(&flush).expect("there is one again");
    for survival in 0..10 {
        let opened = open(&fs.restart(survival)).expect("opened");
        assert_eq!(state(&opened), state(&engine.manifest));
        assert_eq!(names(&fs), names_of(&engine.manifest));
    }
}

#[test]
fn no_room_for_an_edit_is_found_before_it_is_written() {
    let fs = new_disk(1);
    let mut engine = Engine::create(&fs).expect("created");
    engine.manifest.rewrite_bytes_min = u64::MAX;
    let mut flush = engine.flush(0).expect("written");
    // More than is reserved.
    let properties = &mut flush.added[0].metadata.properties;
    properties.smallest = vec![b'0'; 100_000];
    properties.largest.key = b"1".to_vec();
    fs.set_capacity(fs.used());
    let error = engine.manifest.commit(&flush).expect_err("full");
    assert!(matches!(error, Error::DiskFull { .. }), "{error:?}");
    assert_eq!(engine.manifest.poison(), None);
    fs.set_capacity(u64::MAX);
    engine.manifest.commit(&flush).expect("there is room again");
    assert_eq!(state(&open(&fs.restart(1)).expect("opened")), state(&engine.manifest));
}

#[test]
fn a_failed_mark_ends_writing_but_not_the_commit_it_follows() {
    let fs = new_disk(1);
    let mut engine = Engine::create(&fs).expect("created");
    engine.manifest.rewrite_bytes_min = REWRITE_BYTES_MIN;
    let flush = engine.flush(0).expect("written");
    fs.inject(Fault::after(Operation::Write, ".manifest", 1, Effect::Io));
    engine.manifest.commit(&flush).expect("the edit is durable");
    assert_eq!(fs.faults_struck(), 1);
    let committed = state(&engine.manifest);
    let error = engine.manifest.commit(&engine.move_oldest()).expect_err("poisoned");
    assert!(error.to_string().contains("write of /engine/000001.manifest failed"), "{error}");
    assert_eq!(state(&open(&fs.restart(1)).expect("opened")), committed);
}

#[test]
fn a_failure_while_opening_is_an_error_and_the_next_opening_works() {
    let fs = new_disk(1);
    let told = tell(&fs);
    fs.create(&path("000999.sst")).expect("an orphan");
    let operations = [
        Operation::Open,
        Operation::Read,
        Operation::List,
        Operation::Sync,
        Operation::SyncDir,
        Operation::Remove,
    ];
    for operation in operations {
        let fs = fs.restart_killed();
        fs.inject(Fault::next(operation, "", Effect::Io));
        let error = open(&fs).expect_err("it fails");
        assert!(matches!(error, Error::Io { .. }), "{operation:?}: {error:?}");
        assert_eq!(Some(state(&open(&fs.restart(1)).expect("opened"))), told.state);
    }
}
