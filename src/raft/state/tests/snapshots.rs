//! Snapshots: built while entries are applied, received, installed under readers, given up.

use std::sync::atomic::AtomicBool;

use super::super::hash::view_hash;
use super::super::rows;
use super::*;
use crate::util::fs::FileSystem;

/// A replica with its environment and log.
struct Replica {
    environment: Arc<dyn Environment>,
    log: Arc<LogStub>,
    state: Arc<ReplicaState>,
}

impl Replica {
    fn new(disks: &Disks, node: u64) -> Self {
        let (environment, log) = (disks.open(node), LogStub::new());
        let state = open(&environment, &log);
        Self { environment, log, state }
    }

    /// The names of its engines.
    fn engines(&self) -> Vec<String> {
        self.environment.list().expect("lists")
    }

    async fn install(&self, directory: &Path) -> io::Result<()> {
        let (meta, data) = self.state.stage(directory).map_err(to_io)?;
        let mut machine = StateMachine::new(Arc::clone(&self.state));
        machine.install_snapshot(&meta, data).await
    }
}

/// A checkpoint of a replica that has applied `entries`.
async fn checkpoint(disks: &mut Disks, entries: &[Entry]) -> PathBuf {
    let directory = disks.new_directory();
    let node = 1_000 + disks.checkpoints;
    let replica = Replica::new(disks, node);
    apply(&replica.state, entries).await.expect("applies");
    let current = SnapshotData::Current(Arc::clone(&replica.state));
    current.checkpoint(&directory).expect("copies");
    directory
}

async fn current(state: &Arc<ReplicaState>) -> Option<SnapshotMeta> {
    let mut machine = StateMachine::new(Arc::clone(state));
    machine.get_current_snapshot().await.expect("is at hand").map(|snapshot| snapshot.meta)
}

#[tokio::test]
async fn a_snapshot_covers_what_was_applied_when_it_was_begun() {
    for kind in KINDS {
        let history = History::new(3, 40).await;
        let disks = Disks::new(kind, 3);
        let Replica { environment, log, state } = Replica::new(&disks, 0);
        let mut machine = StateMachine::new(Arc::clone(&state));
        assert!(current(&state).await.is_none() && state.applied().is_none());
        assert!(machine.try_create_snapshot_builder(false).await.is_none());
        apply(&state, &history.entries[..20]).await.expect("applies");
        assert!(current(&state).await.is_none(), "nothing is flushed");
        let mut builder = machine.try_create_snapshot_builder(false).await.expect("can be made");
        apply(&state, &history.entries[20..30]).await.expect("applies");
        let built = builder.build_snapshot().await.expect("flushes").meta;
        let last = Some(history.entries[19].log_id);
        assert_eq!((built.last_log_id, state.flushed()), (last, last), "{kind:?}");
        assert_eq!(current(&state).await, Some(built.clone()), "{kind:?}");
        assert_eq!(state.unflushed().entries, 10, "{kind:?}");
        let members = history.entries[..20].iter().rev().find_map(|entry| match &entry.payload {
            EntryPayload::Membership(members) => Some((entry.log_id, members.clone())),
            _ => None,
        });
        let (log_id, members) = members.expect("the first entry has some");
        let members = StoredMembership::new(Some(log_id), members);
        assert_eq!(built.last_membership, members);
        if kind == Kind::Memory {
            continue;
        }
        drop((machine, builder, state, environment));
        let environment = disks.open(0);
        let state = open(&environment, &log);
        assert!(state.applied() >= last, "{kind:?}");
        assert_eq!(current(&state).await.expect("is there").last_log_id, state.applied());
        let mut machine = StateMachine::new(Arc::clone(&state));
        let (applied, found) = machine.applied_state().await.expect("is known");
        assert_eq!(applied, state.applied(), "{kind:?}");
        if next(&state) == 20 {
            assert_eq!(found, members, "{kind:?}");
        }
    }
}

/// One replica applies; another is given its state again and again and applies some entries itself, while threads read from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_see_whole_states_in_order_while_snapshots_are_installed() {
    for kind in KINDS {
        let history = Arc::new(History::new(4, 600).await);
        let mut disks = Disks::new(kind, 4);
        let (source, target) = (Replica::new(&disks, 0), Replica::new(&disks, 1));
        let done = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (history, done) = (Arc::clone(&history), Arc::clone(&done));
                let state = Arc::clone(&target.state);
                std::thread::spawn(move || {
                    let (mut before, mut reads) = (None, 0);
                    while !done.load(Ordering::Acquire) || reads < 10 {
                        let view = state.with_engine(StorageEngine::view).expect("views");
                        let applied = rows::read(&*view).expect("reads").last_log_id;
                        let index = applied.map_or(0, |log_id| log_id.index + 1);
                        let expected = history.hashes[usize::try_from(index).expect("small")];
                        assert_eq!(view_hash(&*view).expect("reads"), expected, "{kind:?}");
                        assert!(applied >= before, "{kind:?}: {applied:?} after {before:?}");
                        (before, reads) = (applied, reads + 1);
                        std::thread::yield_now();
                    }
                    reads
                })
            })
            .collect();
        for to in (20..=600).step_by(20) {
            let from = next(&source.state);
            apply(&source.state, &history.entries[from..to]).await.expect("applies");
            if to % 60 == 0 {
                let directory = disks.new_directory();
                // Meanwhile entries are applied at both ends.
                let more = to.min(590);
                let copying = tokio::task::spawn_blocking({
                    let (state, directory) = (Arc::clone(&source.state), directory.clone());
                    move || SnapshotData::Current(state).checkpoint(&directory)
                });
                apply(&source.state, &history.entries[to..more + 10]).await.expect("applies");
                let from = next(&target.state);
                let behind = (from + 5).min(to);
                apply(&target.state, &history.entries[from..behind]).await.expect("applies");
                copying.await.expect("does not panic").expect("copies");
                target.install(&directory).await.expect("installs");
                assert!(next(&target.state) >= to, "{kind:?}");
                assert_eq!(hash(&target.state), history.hashes[next(&target.state)], "{kind:?}");
            }
        }
        let from = next(&target.state);
        apply(&target.state, &history.entries[from..]).await.expect("applies");
        done.store(true, Ordering::Release);
        for reader in readers {
            assert!(reader.join().expect("reads only whole states") >= 10);
        }
        build(&target.state).await.expect("builds");
        assert_eq!(target.engines(), ["shard-3-10"], "{kind:?}: nobody reads the others");
        assert_eq!(hash(&target.state), history.hashes[600], "{kind:?}");
    }
}

#[tokio::test]
async fn an_engine_that_is_read_stays_until_it_is_let_go() {
    for kind in KINDS {
        let history = History::new(5, 40).await;
        let mut disks = Disks::new(kind, 5);
        let directory = checkpoint(&mut disks, &history.entries[..30]).await;
        let replica = Replica::new(&disks, 0);
        apply(&replica.state, &history.entries[..10]).await.expect("applies");
        let old = replica.state.engine();
        replica.install(&directory).await.expect("installs");
        assert_eq!(replica.log.generation(), 1);
        assert_eq!(next(&replica.state), 30);
        assert_eq!(state_hash(&*old).expect("reads"), history.hashes[10], "{kind:?}");
        assert_eq!(replica.engines(), ["shard-3", "shard-3-1"], "{kind:?}");
        apply(&replica.state, &history.entries[30..35]).await.expect("applies");
        assert_eq!(replica.engines().len(), 2, "{kind:?}");
        drop(old);
        apply(&replica.state, &history.entries[35..]).await.expect("applies");
        assert_eq!(replica.engines(), ["shard-3-1"], "{kind:?}");
        assert_eq!(hash(&replica.state), history.hashes[40], "{kind:?}");
        assert_eq!(current(&replica.state).await.map(|meta| meta.last_log_id), {
            Some(Some(history.entries[29].log_id))
        });
    }
}

#[tokio::test]
async fn a_snapshot_that_is_not_wanted_leaves_nothing() {
    for kind in KINDS {
        let history = History::new(6, 40).await;
        let mut disks = Disks::new(kind, 6);
        let directory = checkpoint(&mut disks, &history.entries[..30]).await;
        let replica = Replica::new(&disks, 0);
        let (meta, first) = replica.state.stage(&directory).expect("stages");
        let (_, second) = replica.state.stage(&directory).expect("stages another");
        assert_eq!(meta.last_log_id, Some(history.entries[29].log_id));
        assert_eq!(replica.engines(), ["shard-3", "shard-3-1", "shard-3-2"], "{kind:?}");
        drop(first);
        assert_eq!(replica.engines(), ["shard-3", "shard-3-2"], "{kind:?}");
        let mut machine = StateMachine::new(Arc::clone(&replica.state));
        machine.install_snapshot(&meta, second).await.expect("installs");
        assert_eq!(replica.engines(), ["shard-3-2"], "{kind:?}");
        assert_eq!(hash(&replica.state), history.hashes[30], "{kind:?}");
    }
}

#[tokio::test]
async fn what_is_no_snapshot_is_refused_and_leaves_nothing() {
    for kind in KINDS {
        let history = History::new(7, 30).await;
        let mut disks = Disks::new(kind, 7);
        let replica = Replica::new(&disks, 0);
        apply(&replica.state, &history.entries[..10]).await.expect("applies");
        let refused = |directory: &Path| replica.state.stage(directory).err().expect("refused");
        refused(&disks.new_directory());
        let empty = checkpoint(&mut disks, &[]).await;
        assert_eq!(refused(&empty).reason(), Reason::InvalidRequest, "{kind:?}");
        let damaged = checkpoint(&mut disks, &history.entries).await;
        if kind == Kind::Lsm {
            let table = disks.fs.list(&damaged).expect("lists");
            disks.fs.corrupt(&damaged.join(&table[0]), 40, 1).expect("is there");
        } else {
            let file = damaged.join("dump");
            let mut bytes = std::fs::read(&file).expect("is there");
            bytes[60] ^= 1;
            std::fs::write(&file, bytes).expect("is written");
        }
        assert_eq!(refused(&damaged).reason(), Reason::Corruption, "{kind:?}");
        assert_eq!(replica.engines(), ["shard-3"], "{kind:?}");
        assert_eq!(hash(&replica.state), history.hashes[10], "{kind:?}");
    }
}

#[tokio::test]
async fn a_snapshot_of_somebody_else_is_not_installed() {
    let history = History::new(8, 30).await;
    let mut disks = Disks::new(Kind::Memory, 8);
    let directory = checkpoint(&mut disks, &history.entries).await;
    let (one, other) = (Replica::new(&disks, 0), Replica::new(&disks, 1));
    let mut machine = StateMachine::new(Arc::clone(&one.state));
    let (meta, data) = other.state.stage(&directory).expect("stages");
    machine.install_snapshot(&meta, data).await.expect_err("is another replica's");
    let (mut meta, data) = one.state.stage(&directory).expect("stages");
    meta.last_log_id = Some(history.entries[3].log_id);
    machine.install_snapshot(&meta, data).await.expect_err("covers something else");
    let own = SnapshotData::Current(Arc::clone(&one.state));
    machine.install_snapshot(&meta, own).await.expect_err("it is not that far");
    let own = SnapshotData::Current(Arc::clone(&one.state));
    machine.install_snapshot(&SnapshotMeta::default(), own).await.expect("it is that far");
    assert_eq!((one.engines().len(), other.engines().len()), (1, 1));
    assert_eq!((hash(&one.state), hash(&other.state)), (history.hashes[0], history.hashes[0]));
}

/// Nobody knows what the log will say: both states stay until it does.
#[tokio::test]
async fn a_failed_switch_leaves_the_choice_to_the_log() {
    for made in [false, true] {
        let history = History::new(9, 30).await;
        let mut disks = Disks::new(Kind::Lsm, 9);
        let directory = checkpoint(&mut disks, &history.entries).await;
        let (environment, log) = (disks.open(0), LogStub::on(&disks.fs, "/log").expect("opens"));
        let state = open(&environment, &log);
        apply(&state, &history.entries[..10]).await.expect("applies");
        build(&state).await.expect("builds");
        let (meta, data) = state.stage(&directory).expect("stages");
        // Four calls change the file of the generation: the last one makes the new name durable.
        disks.fs.crash_at(disks.fs.steps() + if made { 4 } else { 3 });
        let mut machine = StateMachine::new(Arc::clone(&state));
        machine.install_snapshot(&meta, data).await.expect_err("the log has failed");
        assert_eq!(next(&state), 10, "readers see the old state");
        disks.fs = disks.fs.restart_killed();
        let (environment, log) = (disks.open(0), LogStub::on(&disks.fs, "/log").expect("opens"));
        assert_eq!(log.generation(), u64::from(made));
        let state = open(&environment, &log);
        let covers = if made { 30 } else { 10 };
        assert_eq!((next(&state), hash(&state)), (covers, history.hashes[covers]));
        assert_eq!(environment.list().expect("lists").len(), 1);
    }
}

#[tokio::test]
async fn a_snapshot_built_of_the_old_state_does_not_disturb_the_new_one() {
    let history = History::new(10, 30).await;
    let mut disks = Disks::new(Kind::Lsm, 10);
    let directory = checkpoint(&mut disks, &history.entries).await;
    let replica = Replica::new(&disks, 0);
    apply(&replica.state, &history.entries[..10]).await.expect("applies");
    let mut machine = StateMachine::new(Arc::clone(&replica.state));
    let mut builder = machine.try_create_snapshot_builder(true).await.expect("is forced");
    replica.install(&directory).await.expect("installs");
    let built = builder.build_snapshot().await.expect("the old engine is still there").meta;
    assert_eq!(built.last_log_id, Some(history.entries[9].log_id));
    let newest = Some(history.entries[29].log_id);
    assert_eq!((replica.state.flushed(), replica.state.applied()), (newest, newest));
    drop(builder);
    build(&replica.state).await.expect("builds");
    assert_eq!(replica.engines(), ["shard-3-1"]);
}

#[tokio::test]
async fn a_full_disk_leaves_the_snapshot_there_was() {
    let history = History::new(11, 60).await;
    let mut disks = Disks::new(Kind::Lsm, 11);
    disks.seed = 1;
    let replica = Replica::new(&disks, 0);
    apply(&replica.state, &history.entries[..30]).await.expect("applies");
    build(&replica.state).await.expect("builds");
    apply(&replica.state, &history.entries[30..]).await.expect("applies");
    disks.fs.set_capacity(disks.fs.used());
    let meta = build(&replica.state).await.expect("is no reason for the group to end");
    assert_eq!(meta.last_log_id, Some(history.entries[29].log_id));
    disks.fs.set_capacity(u64::MAX);
    let meta = build(&replica.state).await.expect("builds");
    assert_eq!(meta.last_log_id, Some(history.entries[59].log_id));
}

#[tokio::test]
async fn a_snapshot_answers_a_repeated_request_as_the_first() {
    for kind in KINDS {
        let mut disks = Disks::new(kind, 12);
        let first = entry(0, proposal(NOON, put_once("id", "k", "1")));
        let directory = checkpoint(&mut disks, &[first]).await;
        let replica = Replica::new(&disks, 0);
        replica.install(&directory).await.expect("installs");
        let again = entry(1, proposal(NOON + 599_999, put_once("id", "k", "2")));
        let stored = |version| Outcomes(vec![Outcome::Put { version: Version(version) }]);
        assert_eq!(apply(&replica.state, &[again]).await.expect("applies"), [stored(1)]);
        assert_eq!(documents(&replica.state)["k"].0, "1", "{kind:?}");
        let late = entry(2, proposal(NOON + 600_000, put_once("id", "k", "3")));
        assert_eq!(apply(&replica.state, &[late]).await.expect("applies"), [stored(2)]);
    }
}
