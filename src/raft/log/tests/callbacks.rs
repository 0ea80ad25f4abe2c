//! When callers are told, by the log's own threads on the real file system, and what they read meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt as _;
use openraft::errors::LeaderChanged;
use openraft::storage::LeaderBoundedStreamError;

use super::workload::poll;
use super::*;
use crate::raft::types::{Entry, LogId, TypeConfig, Vote};
use crate::util::fs::RealFileSystem;

fn real(dir: &tempfile::TempDir) -> LogStore {
    let options = LogOptions { background: Background::Threads, ..small(1) };
    LogStore::open(Arc::new(RealFileSystem), dir.path().to_owned(), options).expect("opened")
}

fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_time().build().expect("a runtime")
}

#[test]
fn a_callback_says_that_all_before_it_is_durable_too() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = real(&dir);
    let mut waiting = Vec::new();
    for index in 0..2000 {
        for group in 0..4 {
            let log = store.group(GroupId(group));
            waiting.push((group, append(&log, vec![entry(1, index, 50)]).expect("appended")));
        }
    }
    let mut waiting: Vec<_> =
        waiting.into_iter().map(|(group, flushed)| (group, Box::pin(flushed))).collect();
    // Asks of more than a task of tokio may ask of at once.
    runtime().block_on(tokio::task::unconstrained(async {
        // From the newest that is due on, each time everything older of its group has to be.
        while let Some((group, newest)) = waiting.pop() {
            newest.await.expect("durable");
            waiting.retain_mut(|(other, flushed)| {
                let mut flushed: std::pin::Pin<Box<dyn Future<Output = _> + '_>> =
                    Box::pin(flushed);
                let told = poll(&mut flushed).is_some();
                assert!(told || *other != group, "an older append of group {group} is not durable");
                !told
            });
        }
    }));
}

#[test]
fn groups_that_write_at_once_share_their_syncs_and_find_all_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Arc::new(real(&dir));
    runtime().block_on(async {
        let write = |group: u32| {
            let mut log = store.group(GroupId(group));
            async move {
                for index in 0..100u64 {
                    let vote = Vote::new(index + 1, u64::from(group));
                    log.save_vote(&vote).await.expect("saved");
                    append(&log, vec![entry(index, index, 50)])
                        .expect("appended")
                        .await
                        .expect("durable");
                    log.durable(index).await.expect("durable");
                    if index % 10 == 9 {
                        log.truncate_after(Some(id(index - 1, index - 1))).await.expect("cut");
                        drop(append(&log, vec![entry(index, index, 60)]).expect("appended"));
                    }
                }
            }
        };
        let writers: Vec<_> = (0..8).map(|group| tokio::spawn(write(group))).collect();
        for writer in writers {
            writer.await.expect("no panic");
        }
    });
    let counts = store.status().wal.counts;
    assert!(counts.sync_group.count() < counts.records / 2, "{counts:?}");
    Arc::into_inner(store).expect("the writers are done").close().expect("closed");
    let store = real(&dir);
    for group in 0..8 {
        let mut log = store.group(GroupId(group));
        let vote = now(log.read_vote()).expect("in memory");
        assert_eq!(vote, Some(Vote::new(100, u64::from(group))));
        assert_eq!(now(log.try_get_log_entries(0..)).expect("read").len(), 100);
    }
}

#[test]
fn readers_beside_a_writer_that_cuts_and_purges_see_rows_without_a_gap() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = real(&dir);
    let stop = Arc::new(AtomicBool::new(false));
    runtime().block_on(async {
        let reader = |mut log: GroupLog, stop: Arc<AtomicBool>| async move {
            let mut read = 0;
            while !stop.load(Ordering::Relaxed) {
                let entries: Vec<Entry> = log.try_get_log_entries(..).await.expect("read");
                let follow = |pair: &[Entry]| pair[0].log_id.index + 1 == pair[1].log_id.index;
                assert!(entries.windows(2).all(follow), "a gap");
                let rise = |pair: &[Entry]| pair[0].log_id.leader_id <= pair[1].log_id.leader_id;
                assert!(entries.windows(2).all(rise), "entries of two moments");
                read += entries.len();
                tokio::task::yield_now().await;
            }
            read
        };
        let log = store.group(GroupId(1));
        let readers = [(); 2].map(|()| tokio::spawn(reader(log.clone(), Arc::clone(&stop))));
        let (mut log, mut index) = (log, 0);
        for term in 1..300 {
            let entries = (index..index + 20).map(|index| entry(term, index, 100)).collect();
            append(&log, entries).expect("appended").await.expect("durable");
            index += 15;
            log.truncate_after(Some(id(term, index - 1))).await.expect("cut");
            if index > 60 {
                log.purge(id(term, index - 60)).await.expect("purged");
            }
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.await.expect("no panic") > 0, "nothing was read");
        }
    });
    assert!(store.status().wal.counts.segments_removed > 10, "no segment went under the readers");
}

#[test]
fn a_stream_of_a_leader_ends_where_it_is_leader_no_more() {
    let store = open(&SimFileSystem::new(1)).expect("opened");
    let mut log = filled(&store, GroupId(1), 0..600);
    let vote = Vote::new_committed(2, 3);
    done(&store, log.save_vote(&vote)).expect("saved");
    let mut reader = log.clone();
    let mut seen = 0;
    let error = now(async {
        let mut stream = Box::pin(reader.leader_bounded_stream(*vote.leader_id(), 0..).await);
        loop {
            match stream.next().await.expect("an error comes first") {
                Ok(_) => seen += 1,
                Err(error) => {
                    assert!(stream.next().await.is_none());
                    break error;
                }
            }
            if seen == 300 {
                drop(store.group(GroupId(1)).note(|hard| hard.vote = Some(Vote::new(3, 1))));
            }
        }
    });
    assert_eq!(seen, 300);
    let expected = LeaderChanged::new(*vote.leader_id(), Some(Vote::new(3, 1)));
    assert!(matches!(error, LeaderBoundedStreamError::LeaderChanged(found) if found == expected));
    let read = |log: &mut GroupLog, range: std::ops::Range<u64>| {
        now(async {
            log.leader_bounded_stream(*vote.leader_id(), range).await.collect::<Vec<_>>().await
        })
    };
    assert!(matches!(read(&mut log, 0..3)[..], [Err(_)]), "not committed, another leader");
    done(&store, log.save_vote(&vote)).expect("saved");
    assert_eq!(read(&mut log, 300..600).iter().filter(|entry| entry.is_ok()).count(), 300);
}

/// A reader that finds the leaders as openraft does by itself: by reading entries.
struct Searching(GroupLog);

impl RaftLogReader<TypeConfig> for Searching {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: std::ops::RangeBounds<u64> + Clone + std::fmt::Debug + openraft::OptionalSend,
    {
        self.0.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.0.read_vote().await
    }
}

#[test]
fn the_leaders_from_memory_are_those_that_openraft_finds_by_reading() {
    let store = open(&SimFileSystem::new(1)).expect("opened");
    let mut log = store.group(GroupId(1));
    let mut random = workload::Random(5);
    let mut ids: Vec<LogId> = Vec::new();
    let mut term = 1;
    for index in 0..200 {
        term += u64::from(random.below(5) == 0);
        let next = entry(term, index, 20);
        ids.push(next.log_id);
        drop(append(&log, vec![next]).expect("appended"));
    }
    for _ in 0..200 {
        let mut drawn = || ids[usize::try_from(random.below(200)).expect("small")];
        let (one, other) = (drawn(), drawn());
        let (first, last) = (one.min(other), one.max(other));
        let found = now(log.get_key_log_ids(first..=last)).expect("in memory");
        let searched = now(Searching(log.clone()).get_key_log_ids(first..=last)).expect("read");
        assert_eq!(found, searched, "{first} to {last}");
    }
}
