//! The power goes at every step, and again at every step of the opening after it: what was acknowledged as durable is
//! there, what survived is a prefix, and opening twice gives the same.

use super::workload::{Told, run};
use super::*;

const STEPS: u32 = 60;
const WORKLOADS: u64 = 12;
const SURVIVALS: u64 = 6;

fn crashed_at(workload: u64, step: Option<u64>) -> (SimFileSystem, Told) {
    let fs = SimFileSystem::new(workload);
    if let Some(step) = step {
        fs.crash_at(step);
    }
    let mut told = Told::default();
    if let Ok(opened) = open(&fs, workload) {
        run(&opened.wal, workload, STEPS, &mut told);
    }
    (fs, told)
}

fn steps_of(workload: u64) -> u64 {
    crashed_at(workload, None).0.steps()
}

#[test]
fn cut_at_every_step_the_log_keeps_what_was_acknowledged() {
    let (mut segments, mut lost) = (0, 0);
    for workload in 0..WORKLOADS {
        for step in 0..=steps_of(workload) {
            let (fs, told) = crashed_at(workload, Some(step));
            let killed = reopen(&fs.restart_killed());
            let context = || format!("workload {workload}, step {step}\n{}", fs.log_text());
            told.check(&killed.seen, told.written).unwrap_or_else(|e| panic!("{e}: {}", context()));
            for survival in 0..SURVIVALS {
                let after = fs.restart(survival);
                let opened = open(&after, survival)
                    .unwrap_or_else(|e| panic!("{e}: survival {survival}, {}", context()));
                told.check(&opened.seen, told.synced)
                    .unwrap_or_else(|e| panic!("{e}: survival {survival}, {}", context()));
                segments = segments.max(opened.recovery.segments);
                lost += usize::from(opened.recovery.torn.is_some());
                goes_on(&after, opened, &told);
            }
        }
    }
    assert!(segments > 2 && lost > 100, "the workloads show nothing: {segments}, {lost}");
}

/// Positions are new, and what is written now is found with what was there.
fn goes_on(fs: &SimFileSystem, opened: Opened, told: &Told) {
    let Opened { wal, mut seen, .. } = opened;
    let position = append(&wal, ONE, b"after the crash");
    let used = told.records.last().map_or(Position::BEGINNING, |record| record.position);
    assert!(position > used, "{position} was used before {used}");
    wal.commit(position, Level::Sync).expect("synced");
    let body = b"after the crash".to_vec();
    seen.push(Seen { position, owner: ONE, kind: Kind::FIRST, body });
    drop(wal);
    assert_eq!(reopen(&fs.restart(1)).seen, seen);
}

#[test]
fn cut_at_every_step_of_the_opening_the_next_one_finds_the_same() {
    for workload in 0..WORKLOADS / 2 {
        // Every third step is enough here: each one has some twenty steps of opening behind it.
        for step in (0..=steps_of(workload)).step_by(3) {
            let (fs, told) = crashed_at(workload, Some(step));
            for survival in 0..2 {
                second_crash(&fs, &told, survival, &format!("workload {workload}, step {step}"));
            }
        }
    }
}

fn second_crash(fs: &SimFileSystem, told: &Told, survival: u64, context: &str) {
    let whole = fs.restart(survival);
    let expected = reopen(&whole).seen;
    for step in 0..whole.steps() {
        let second = fs.restart(survival);
        second.crash_at(step);
        if let Ok(opened) = open(&second, 77) {
            assert_eq!(opened.seen, expected);
        }
        assert!(second.crashed(), "the crash never came");
        for survival in 0..3 {
            let after = second.restart(survival);
            let opened = open(&after, 78).unwrap_or_else(|error| {
                panic!("{error}: {context}, opening cut at {step}\n{}", second.log_text())
            });
            assert_eq!(opened.seen, expected, "{context}, opening cut at {step}");
            goes_on(&after, opened, told);
        }
    }
}
