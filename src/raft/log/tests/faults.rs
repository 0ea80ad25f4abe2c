//! Every call of the file system fails once, in every way: whoever waits is told, nobody is told wrong, and a log that cannot
//! write says so ever after.

use super::workload::{Run, World, check};
use super::*;
use crate::util::fs::FileSystem as _;
use crate::util::fs::sim::{Effect, Fault};

const STEPS: u32 = 50;

#[test]
fn each_call_fails_once_in_each_way_and_no_answer_is_false() {
    let effects = [Effect::Io, Effect::DiskFull, Effect::ShortWrite, Effect::ShortWriteDiskFull];
    let (mut poisoned, mut refused) = (0, 0);
    for workload in 0..6 {
        let fs = SimFileSystem::new(workload);
        let mut whole = Run::new(open(&fs).expect("opened"), World::new(), workload);
        let opening = fs.steps();
        whole.steps(STEPS).expect("nothing fails");
        for effect in effects {
            for step in opening..fs.steps() {
                let run = fail_at(workload, step, effect);
                poisoned += u64::from(run.store.status().wal.poison.is_some());
                refused += run.refused;
            }
        }
    }
    assert!(poisoned > 100 && refused > 5, "poisoned {poisoned}, refused {refused}");
}

fn fail_at(workload: u64, step: u64, effect: Effect) -> Run {
    let fs = SimFileSystem::new(workload);
    let mut run = Run::new(open(&fs).expect("opened"), World::new(), workload);
    fs.inject(Fault::at_step(step, effect));
    let outcome = run.steps(STEPS);
    let context = || format!("workload {workload}, {effect:?} at {step}\n{}", fs.log_text());
    // A removal that failed is no failure of the log: it is tried again.
    let poison = run.store.status().wal.poison;
    if poison.is_some() {
        assert!(outcome.is_err(), "{}", context());
        everybody_is_told(&mut run);
        let steps = fs.steps();
        refuses_all(&run.store);
        assert_eq!(fs.steps(), steps, "a poisoned log touches no file");
    } else {
        check(&run.store, run.world()).unwrap_or_else(|what| panic!("{what}: {}", context()));
        while run.store.drive() {}
        run.ask().expect("the log goes on");
        assert_eq!(run.waiting(), 0, "{}", context());
    }
    assert_eq!(fs.faults_struck(), 1, "{}", context());
    for survival in 0..3 {
        let store = open(&fs.restart(survival));
        let store = store.unwrap_or_else(|error| panic!("{error}: {}", context()));
        run.found(&store).unwrap_or_else(|what| panic!("{what}: {survival}, {}", context()));
    }
    run
}

fn everybody_is_told(run: &mut Run) {
    while run.waiting() > 0 {
        let waiting = run.waiting();
        run.store.drive();
        let _ = run.ask();
        assert!(run.waiting() < waiting, "somebody is never told");
    }
}

fn refuses_all(store: &LogStore) {
    let log = store.group(GroupId(1));
    let next = now(log.clone().get_log_state()).expect("in memory").last_log_id;
    let next = next.map_or(0, |last| last.index + 1);
    assert!(append(&log, vec![entry(9, next, 1)]).is_err());
    assert!(now(log.set_generation(99)).is_err());
    assert!(now(log.clone().save_committed(None)).is_err());
    assert!(now(log.clone().purge(id(9, next))).is_err());
    assert!(store.maintain().is_err());
}

#[test]
fn a_failed_sync_is_what_the_callback_says_and_every_later_call() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    let log = filled(&store, GroupId(1), 0..2);
    let flushed = append(&log, vec![entry(1, 2, 10)]).expect("appended");
    let vote = crate::raft::types::Vote::new(3, 1);
    let mut voter = log.clone();
    let mut saved: std::pin::Pin<Box<dyn Future<Output = _>>> = Box::pin(voter.save_vote(&vote));
    assert!(workload::poll(&mut saved).is_none(), "a vote waits for its sync");
    fs.inject(Fault::next(crate::util::fs::sim::Operation::Sync, ".wal", Effect::Io));
    let error = done(&store, flushed).expect_err("not durable");
    assert!(error.to_string().contains("sync of /log/"), "{error}");
    assert!(done(&store, saved).is_err());
    assert!(done(&store, log.durable(2)).is_err());
    done(&store, log.durable(1)).expect("was durable before");
    let error = append(&log, vec![entry(1, 3, 10)]).err().expect("refused");
    assert!(error.to_string().contains("takes no more writes"), "{error}");
    let entries = now(log.clone().try_get_log_entries(0..)).expect("in memory");
    assert_eq!(entries.len(), 3, "what was appended can be read");
}

#[test]
fn a_full_disk_refuses_what_it_has_no_room_for_and_nothing_else() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    let log = filled(&store, GroupId(1), 0..5);
    fs.set_capacity(fs.used());
    let mut index = 5;
    let error = loop {
        match append(&log, vec![entry(1, index, 500)]) {
            Ok(_) => index += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    let last = now(log.clone().get_log_state()).expect("in memory").last_log_id;
    assert_eq!(last.map(|last| last.index + 1), Some(index), "nothing of it was appended");
    // Small things still find their place in the segment.
    done(&store, log.set_generation(1)).expect("saved");
    fs.set_capacity(u64::MAX);
    let flushed = append(&log, vec![entry(1, index, 500)]).expect("there is room again");
    done(&store, flushed).expect("durable");
    drop((store, log));
    let store = open(&fs.restart(1)).expect("opened");
    let entries = now(store.group(GroupId(1)).try_get_log_entries(0..)).expect("read");
    assert_eq!(entries.len() as u64, index + 1);
    assert!(fs.exists(std::path::Path::new(DIR)).expect("asked"));
}
