//! Every call fails once, in every way: the log is poisoned, or nothing has happened. Never an acknowledgement of what
//! is lost, never a second sync that is called good.

use std::sync::atomic::{AtomicBool, Ordering};

use super::workload::{Told, run};
use super::*;
use crate::util::fs::is_out_of_handles;
use crate::util::fs::sim::{Effect, Fault, Operation};

const STEPS: u32 = 60;

#[test]
fn each_call_fails_once_in_each_way_and_no_acknowledgement_is_false() {
    let effects = [
        Effect::Io,
        Effect::DiskFull,
        Effect::ShortWrite,
        Effect::ShortWriteDiskFull,
        Effect::NoHandles,
    ];
    let (mut poisoned, mut full, mut not_made) = (0, 0, 0);
    for workload in 0..8 {
        let fs = SimFileSystem::new(workload);
        drop(reopen(&fs));
        let opening = fs.steps();
        let steps = steps_of(workload);
        for effect in effects {
            for step in opening..steps {
                let told = fail_at(workload, step, effect);
                poisoned += u64::from(told.poisoned);
                full += u64::from(told.disk_full > 0 && !told.poisoned);
                not_made += u64::from(told.not_made > 0 && !told.poisoned);
            }
        }
    }
    let counts = format!("poisoned {poisoned}, full {full}, not made {not_made}");
    assert!(poisoned > 100 && full > 20 && not_made > 20, "{counts}");
}

fn steps_of(workload: u64) -> u64 {
    let fs = SimFileSystem::new(workload);
    run(&reopen(&fs).wal, workload, STEPS, &mut Told::default());
    fs.steps()
}

fn fail_at(workload: u64, step: u64, effect: Effect) -> Told {
    let fs = SimFileSystem::new(workload);
    let wal = open(&fs, 1000).expect("opened").wal;
    let mut told = Told::default();
    fs.inject(Fault::at_step(step, effect));
    run(&wal, workload, STEPS, &mut told);
    let context = || format!("workload {workload}, {effect:?} at {step}\n{}", fs.log_text());
    assert_eq!(fs.faults_struck(), 1, "{}", context());
    if told.poisoned || wal.status().poison.is_some() {
        refuses_all(&fs, &wal, &told);
    } else {
        wal.barrier(Level::Sync).expect("the log goes on");
        told.synced = told.records.len();
    }
    drop(wal);
    for survival in 0..4 {
        let after = fs.restart(survival);
        let opened = open(&after, 5).unwrap_or_else(|error| panic!("{error}: {}", context()));
        told.check(&opened.seen, told.synced)
            .unwrap_or_else(|error| panic!("{error}: survival {survival}, {}", context()));
    }
    told
}

fn refuses_all(fs: &SimFileSystem, wal: &Wal, told: &Told) {
    let steps = fs.steps();
    assert!(matches!(wal.append(ONE, Kind::FIRST, &[b"x"]), Err(Error::Poisoned { .. })));
    if let Some(last) = told.records.last() {
        let synced = wal.commit(last.position, Level::Sync);
        assert_eq!(synced.is_ok(), last.position < wal.reached(Level::Sync));
    }
    assert!(matches!(wal.maintain(), Err(Error::Poisoned { .. })));
    assert_eq!(fs.steps(), steps, "a poisoned log touches no file");
}

#[test]
fn the_opening_fails_at_each_call_and_the_next_one_finds_everything() {
    let fs = SimFileSystem::new(3);
    let mut told = Told::default();
    run(&reopen(&fs).wal, 3, STEPS, &mut told);
    let torn = fs.restart(9);
    let whole = torn.restart(0);
    let expected = reopen(&whole).seen;
    for effect in [Effect::Io, Effect::DiskFull] {
        for step in 0..whole.steps() {
            let broken = torn.restart(0);
            broken.inject(Fault::at_step(step, effect));
            if let Ok(opened) = open(&broken, 1) {
                assert_eq!(opened.seen, expected);
                append(&opened.wal, ONE, b"there is room again");
            }
            assert_eq!(broken.faults_struck(), 1);
            assert_eq!(reopen(&broken.restart(step)).seen[..expected.len()], expected);
        }
    }
}

#[test]
fn a_failed_sync_names_the_file_and_is_the_answer_to_everybody_for_ever() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let durable = append(&wal, ONE, b"durable");
    wal.commit(durable, Level::Sync).expect("synced");
    fs.inject(Fault::next(Operation::Sync, ".wal", Effect::Io));
    let lost = append(&wal, ONE, b"lost");
    let called = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&called);
    wal.on_level(lost, Level::Sync, move |outcome| {
        assert!(matches!(outcome, Err(Error::Poisoned { .. })));
        flag.store(true, Ordering::SeqCst);
    })
    .expect("registered");
    let error = wal.commit(lost, Level::Sync).expect_err("the sync failed");
    assert!(matches!(error, Error::Poisoned { operation: "sync", .. }), "{error}");
    assert!(error.to_string().contains("0000000001.wal"), "{error}");
    let syncs = fs.count(Operation::Sync);
    assert!(wal.commit(lost, Level::Sync).is_err());
    assert!(wal.drive() && called.load(Ordering::SeqCst));
    assert_eq!(fs.count(Operation::Sync), syncs, "no second sync");
    wal.commit(durable, Level::Sync).expect("was reached before");
    assert_eq!(wal.read(durable).expect("reading goes on").body, b"durable");
    assert!(wal.status().poison.is_some());
    assert!(wal.close().is_err());
}

#[test]
fn a_full_disk_refuses_appends_and_takes_them_again_after_a_release() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    fs.set_capacity(8 << 10);
    let mut appended = 0;
    let error = loop {
        match wal.append(ONE, Kind::FIRST, &[&[0; 100]]) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(appended > 30, "{appended}");
    wal.barrier(Level::Sync).expect("what was appended has its room");
    assert!(wal.append(ONE, Kind::FIRST, &[&[0; 100]]).is_err());
    wal.release_all(ONE);
    wal.maintain().expect("what is removed makes room for the next segment");
    append(&wal, ONE, b"there is room again");
    wal.close().expect("closed");
    let seen = reopen(&fs).seen;
    assert_eq!(seen.last().expect("some").body, b"there is room again");
}

#[test]
fn without_handles_appends_are_refused_once_the_segments_are_full_and_taken_again_later() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    wal.maintain().expect("the next segment is made");
    fs.set_handles(false);
    let mut appended = 0;
    let refused = |error: &Error| {
        let Error::Io { operation: "create", source, .. } = error else { return false };
        is_out_of_handles(source)
    };
    let error = loop {
        match wal.append(ONE, Kind::FIRST, &[&[0; 100]]) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(refused(&error), "{error}");
    assert!(appended > 10, "two segments: {appended}");
    wal.barrier(Level::Sync).expect("the files that are written to are open");
    wal.release_all(ONE);
    let error = wal.maintain().expect_err("there are none still");
    assert!(is_out_of_handles_of_a_removal(&error), "{error}");
    assert!(wal.append(ONE, Kind::FIRST, &[&[0; 100]]).is_err());
    assert!(wal.status().poison.is_none());
    fs.set_handles(true);
    wal.maintain().expect("there are handles");
    assert!(wal.status().removal.is_none());
    let last = append(&wal, ONE, b"there are handles again");
    wal.commit(last, Level::Sync).expect("synced");
    for survival in 0..20 {
        let seen = reopen(&fs.restart(survival)).seen;
        assert_eq!(seen.last().expect("some").body, b"there are handles again");
    }
}

/// Of the sync of the directory after a segment was removed.
fn is_out_of_handles_of_a_removal(error: &Error) -> bool {
    matches!(error, Error::Io { operation: "sync", source, .. } if is_out_of_handles(source))
}

#[test]
fn a_segment_that_could_not_be_made_or_named_is_made_again() {
    let failures = [
        (Operation::Create, Effect::Io),
        (Operation::Create, Effect::NoHandles),
        (Operation::SyncDir, Effect::NoHandles),
    ];
    for (operation, effect) in failures {
        let fs = SimFileSystem::new(1);
        let wal = reopen(&fs).wal;
        let mut appended = Vec::new();
        fs.inject(Fault::next(operation, "log", effect));
        while fs.faults_struck() == 0 {
            if let Ok(position) = wal.append(ONE, Kind::FIRST, &[&[7; 100]]) {
                appended.push(position);
            }
        }
        assert!(wal.status().poison.is_none(), "{operation:?} {effect:?}");
        appended.extend((0..30).map(|_| append(&wal, ONE, &[8; 100])));
        wal.barrier(Level::Sync).expect("synced");
        for survival in 0..20 {
            let seen = reopen(&fs.restart(survival)).seen;
            let positions: Vec<_> = seen.iter().map(|seen| seen.position).collect();
            assert_eq!(positions, appended, "{operation:?}, survival {survival}");
        }
    }
}

#[test]
fn a_log_opens_on_a_full_disk_and_never_gives_a_position_twice() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    let last = (0..30).map(|_| append(&wal, ONE, &[0; 100])).max().expect("some");
    wal.commit(last, Level::Buffered).expect("written");
    for survival in 0..20 {
        let after = fs.restart(survival);
        after.set_capacity(after.used());
        let opened = reopen(&after);
        let error = opened.wal.append(ONE, Kind::FIRST, &[&vec![0; 100_000]]).expect_err("no room");
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        drop(opened);
        let again = after.restart(survival);
        again.set_capacity(u64::MAX);
        let opened = reopen(&again);
        assert!(append(&opened.wal, ONE, b"new") > last, "survival {survival}");
    }
}

#[test]
fn a_removal_that_fails_is_reported_and_tried_again() {
    let fs = SimFileSystem::new(1);
    let wal = reopen(&fs).wal;
    (0..30).for_each(|_| _ = append(&wal, ONE, &[0; 100]));
    wal.barrier(Level::Sync).expect("synced");
    wal.release_all(ONE);
    wal.maintain().expect("maintained");
    (0..30).for_each(|_| _ = append(&wal, ONE, &[0; 100]));
    wal.release_all(ONE);
    fs.inject(Fault::next(Operation::Remove, ".wal", Effect::Io));
    let error = wal.maintain().expect_err("the removal failed");
    assert!(matches!(error, Error::Io { operation: "remove", .. }), "{error}");
    assert!(wal.status().removal.is_some() && wal.status().poison.is_none());
    wal.maintain().expect("went well");
    assert!(wal.status().removal.is_none());
    assert_eq!(segment_files(&fs).len(), 2);
}
