//! How the log gives back its space: who holds it, who is told to let go, and that a crash in between takes nothing.

use super::*;
use crate::raft::types::Vote;
use crate::util::fs::FileSystem as _;

const IDLE: GroupId = GroupId(1);
const BUSY: GroupId = GroupId(2);

fn segments(fs: &SimFileSystem) -> usize {
    let names = fs.list(std::path::Path::new(DIR)).expect("listed");
    names.iter().filter(|name| name.as_str() != "LOCK").count()
}

/// Appends to a group and purges all but the last entries, again and again, with the log maintained.
fn busy(store: &LogStore, from: u64) -> u64 {
    let mut index = from;
    for _ in 0..20 {
        let mut log = filled(store, BUSY, index..index + 20);
        index += 20;
        now(log.purge(id(1, index - 5))).expect("purged");
        while store.drive() {}
        store.maintain().expect("maintained");
    }
    index
}

#[test]
fn an_idle_group_with_entries_holds_the_log_until_it_purges_and_is_named() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    let mut idle = filled(&store, IDLE, 0..3);
    assert_eq!(store.laggard(0), None, "what it holds is being written");
    let end = busy(&store, 0);
    assert!(segments(&fs) > 10, "{} segments", segments(&fs));
    let disk_bytes = store.status().wal.disk_bytes;
    assert_eq!(store.laggard(disk_bytes), None);
    assert_eq!(store.laggard(disk_bytes - 1), Some(IDLE));
    let status = store.status();
    let (first, second) = (&status.groups[0], &status.groups[1]);
    assert_eq!((first.group, first.first, first.end), (IDLE, 0, 3));
    assert!(first.segments_held > 10 && second.segments_held < 3, "{status:?}");
    now(idle.purge(id(1, 2))).expect("purged");
    while store.drive() {}
    store.maintain().expect("maintained");
    assert!(segments(&fs) < 5, "{} segments", segments(&fs));
    assert_eq!(store.laggard(disk_bytes / 2), None);
    busy(&store, end);
    assert!(segments(&fs) < 5, "{} segments", segments(&fs));
    let state = now(idle.get_log_state()).expect("in memory");
    assert_eq!(state.last_log_id, Some(id(1, 2)));
}

#[test]
fn idle_groups_without_entries_hold_nothing_and_lose_nothing() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    for group in 10..30 {
        let vote = Vote::new(u64::from(group), 1);
        done(&store, store.group(GroupId(group)).save_vote(&vote)).expect("saved");
        done(&store, store.group(GroupId(group)).set_generation(7)).expect("saved");
    }
    busy(&store, 0);
    assert!(segments(&fs) < 6, "{} segments", segments(&fs));
    for survival in 0..10 {
        let store = open(&fs.restart(survival)).expect("opened");
        for group in 10..30 {
            let mut log = store.group(GroupId(group));
            let vote = now(log.read_vote()).expect("in memory");
            assert_eq!(vote, Some(Vote::new(u64::from(group), 1)), "survival {survival}");
            assert_eq!(log.generation(), 7);
        }
    }
}

#[test]
fn what_says_that_something_was_purged_is_durable_before_it_is_removed() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    let vote = Vote::new(4, 2);
    done(&store, store.group(BUSY).save_vote(&vote)).expect("saved");
    let mut log = filled(&store, BUSY, 0..200);
    now(log.purge(id(1, 199))).expect("purged");
    // Nobody has synced since.
    store.maintain().expect("maintained");
    for survival in 0..20 {
        let store = open(&fs.restart(survival)).expect("opened");
        let mut log = store.group(BUSY);
        assert_eq!(now(log.read_vote()).expect("in memory"), Some(vote), "survival {survival}");
        let state = now(log.get_log_state()).expect("in memory");
        assert_eq!(state.last_log_id, Some(id(1, 199)), "survival {survival}");
    }
    while store.drive() {}
    store.maintain().expect("maintained");
    assert!(segments(&fs) < 4, "{} segments", segments(&fs));
}

#[test]
fn a_group_that_was_forgotten_leaves_nothing_and_may_begin_anew() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    let old = filled(&store, IDLE, 0..50);
    done(&store, old.set_generation(3)).expect("saved");
    done(&store, store.forget(IDLE)).expect("forgotten");
    assert_eq!(store.groups(), []);
    let error = append(&old, vec![entry(1, 50, 1)]).err().expect("refused");
    assert!(error.to_string().contains("group 1 was removed"), "{error}");
    assert!(now(old.set_generation(4)).is_err());
    // Durable: a crash does not bring it back.
    for survival in 0..10 {
        let store = open(&fs.restart(survival)).expect("opened");
        assert!(store.group(IDLE).is_pristine(), "survival {survival}");
        assert_eq!((store.group(IDLE).generation(), store.groups()), (0, Vec::new()));
    }
    filled(&store, BUSY, 0..50);
    store.maintain().expect("maintained");
    let first = std::path::Path::new(DIR).join("0000000001.wal");
    assert!(!fs.exists(&first).expect("asked"), "nobody needs it");
    let new = filled(&store, IDLE, 0..2);
    assert_eq!(now(new.clone().try_get_log_entries(0..)).expect("read").len(), 2);
    assert_eq!(store.groups(), [IDLE, BUSY]);
    done(&store, store.forget(GroupId(99))).expect("there is nothing to forget");
    drop((store, old, new));
    let store = open(&fs.restart(5)).expect("opened");
    assert_eq!(now(store.group(IDLE).try_get_log_entries(0..)).expect("read").len(), 2);
}

#[test]
fn a_group_that_is_being_forgotten_is_there_or_not_and_never_half() {
    let fs = SimFileSystem::new(1);
    let store = open(&fs).expect("opened");
    drop(filled(&store, IDLE, 0..200));
    let mut forgotten: std::pin::Pin<Box<dyn Future<Output = _>>> = Box::pin(store.forget(IDLE));
    assert!(workload::poll(&mut forgotten).is_none(), "it waits for its sync");
    // Nobody has synced since.
    store.maintain().expect("maintained");
    let mut left = 0;
    for survival in 0..40 {
        let store = open(&fs.restart(survival)).expect("opened");
        let entries = now(store.group(IDLE).try_get_log_entries(0..)).expect("read").len();
        assert!([0, 200].contains(&entries), "{entries} entries, survival {survival}");
        left += usize::from(entries > 0);
    }
    assert!(left > 0, "that it is not gone yet is possible");
}

#[test]
fn entries_in_memory_are_bounded_over_all_groups() {
    let fs = SimFileSystem::new(1);
    let cache_bytes = 32 << 10;
    let store = opened(&fs, cache_bytes);
    for round in 0..20u64 {
        for group in 0..8 {
            let log = store.group(GroupId(group));
            let entries = (round * 10..round * 10 + 10).map(|index| entry(1, index, 200));
            drop(append(&log, entries.collect()).expect("appended"));
            assert!(store.status().cached_bytes <= cache_bytes);
        }
    }
    assert!(store.status().cached_bytes > cache_bytes / 2, "what fits is kept");
    for group in 0..8 {
        let cached = store
            .group(GroupId(group))
            .group
            .cached_bytes
            .load(std::sync::atomic::Ordering::Relaxed);
        assert!(cached > 0, "every group has its newest in memory");
    }
    drop(append(&store.group(GroupId(0)), vec![entry(1, 200, 1 << 20)]).expect("appended"));
    assert!(store.status().cached_bytes <= cache_bytes, "one that is too large is not kept");
}

#[test]
fn entries_of_groups_that_nobody_writes_to_leave_memory_and_are_read_from_disk() {
    const IDLE: GroupId = GroupId(1);
    let store = opened(&SimFileSystem::new(1), 1 << 20);
    let (idle, busy) = (store.group(IDLE), store.group(GroupId(2)));
    drop(append(&idle, (0..20).map(|index| entry(1, index, 200)).collect()).expect("appended"));
    for index in 0..50 {
        drop(append(&busy, vec![entry(1, index, 200)]).expect("appended"));
        store.trim();
    }
    assert_eq!(idle.state().tail.bytes(), 0);
    let kept = busy.state().tail.bytes();
    assert!(kept > 50 * 200, "{kept}");
    assert_eq!(store.status().cached_bytes, kept);
    assert!(store.drive(), "what was appended is written");
    let read = now(store.group(IDLE).try_get_log_entries(0..)).expect("read");
    assert_eq!(read.len(), 20);
}
