//! Applying: the same entries give the same state, in one batch, not ahead of the log.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

/// A replica, by turns in one process after another and on one node after another, applies in chunks what another applied one by one.
#[tokio::test]
async fn same_entries_give_the_same_state_on_every_engine_in_any_chunks() {
    for seed in 0..8 {
        let history = History::new(seed, 400).await;
        for kind in KINDS {
            let what = format!("seed {seed}, {kind:?}");
            let mut random = StdRng::seed_from_u64(seed);
            let mut disks = Disks::new(kind, seed);
            let mut node = 0;
            let mut log = LogStub::new();
            let mut environment = disks.open(node);
            let mut state = open(&environment, &log);
            while next(&state) < history.entries.len() {
                match random.random_range(0..10) {
                    0 => {
                        let meta = build(&state).await.expect("builds");
                        assert_eq!(meta.last_log_id, state.applied(), "{what}");
                    }
                    // What is in memory goes with the process, so only its first generation can begin again.
                    1 if kind != Kind::Memory || log.generation() == 0 => {
                        let flushed = state.flushed();
                        drop((state, environment));
                        environment = disks.open(node);
                        state = open(&environment, &log);
                        assert!(state.applied() >= flushed || kind == Kind::Memory, "{what}");
                    }
                    2 if state.applied().is_some() => {
                        let directory = disks.new_directory();
                        state.engine().checkpoint(&directory).expect("copies");
                        node += 1;
                        let other = disks.open(node);
                        let others_log = LogStub::new();
                        let others = open(&other, &others_log);
                        let (meta, data) = others.stage(&directory).expect("stages");
                        assert_eq!(meta.last_log_id, state.applied(), "{what}");
                        others.install(&meta, data).await.expect("installs");
                        (state, environment, log) = (others, other, others_log);
                    }
                    _ => {
                        let from = next(&state);
                        let count = [1, 2, 7, 40, 300][random.random_range(0..5)];
                        let to = history.entries.len().min(from + count);
                        let outcomes =
                            apply(&state, &history.entries[from..to]).await.expect("applies");
                        assert_eq!(outcomes, history.outcomes[from..to], "{what}, from {from}");
                    }
                }
                assert_eq!(hash(&state), history.hashes[next(&state)], "{what}, {}", next(&state));
            }
            drop(environment);
        }
    }
}

/// Entries that are too many for one chunk: the first 256 go, the rest waits for the log.
#[tokio::test]
async fn nothing_is_applied_before_the_local_log_has_it() {
    let history = History::new(1, 300).await;
    let environment: Arc<dyn Environment> = Arc::new(MemoryEnvironment::new());
    let log = LogStub::new();
    let state = open(&environment, &log);
    log.durable.send_replace(Some(254));
    let applying = tokio::spawn({
        let (state, entries) = (Arc::clone(&state), history.entries.clone());
        async move { apply(&state, &entries).await }
    });
    settle().await;
    assert_eq!((state.applied(), hash(&state)), (None, history.hashes[0]));
    log.durable.send_replace(Some(255));
    settle().await;
    assert_eq!((next(&state), hash(&state)), (256, history.hashes[256]));
    assert_eq!(state.engine().durable(), Seqno(1), "it was one batch");
    log.durable.send_replace(None);
    let error = applying.await.expect("does not panic").expect_err("the log has failed");
    assert_eq!(error.to_string(), "the log has failed");
    assert_eq!((next(&state), hash(&state)), (256, history.hashes[256]), "nothing is skipped");
}

#[tokio::test]
async fn large_entries_are_applied_a_few_at_a_time() {
    let environment: Arc<dyn Environment> = Arc::new(MemoryEnvironment::new());
    let log = LogStub::new();
    let state = open(&environment, &log);
    let text = "x".repeat(600 << 10);
    let entries: Vec<_> =
        (0..5).map(|index| entry(index, proposal(NOON, put("k", &text, 0)))).collect();
    log.durable.send_replace(Some(3));
    let applying = tokio::spawn({
        let (state, entries) = (Arc::clone(&state), entries.clone());
        async move { apply(&state, &entries).await }
    });
    settle().await;
    assert_eq!(next(&state), 4, "two chunks of two");
    log.durable.send_replace(Some(4));
    assert_eq!(applying.await.expect("does not panic").expect("applies").len(), 5);
}

#[tokio::test]
async fn an_entry_that_is_no_proposal_ends_the_group() {
    let environment: Arc<dyn Environment> = Arc::new(MemoryEnvironment::new());
    let state = open(&environment, &LogStub::new());
    let before = hash(&state);
    let nonsense = EntryPayload::Normal(Proposal::from_bytes("nonsense".into()));
    let entries = [entry(0, proposal(NOON, put("k", "1", 0))), entry(1, nonsense)];
    let error = apply(&state, &entries).await.expect_err("cannot be applied");
    assert!(error.to_string().contains("group 3: entry T1-N1.1 is 8 bytes"), "{error}");
    assert_eq!((state.applied(), hash(&state)), (None, before), "nothing of the chunk is");
}

#[tokio::test]
async fn an_error_of_the_log_reader_ends_the_group() {
    let environment: Arc<dyn Environment> = Arc::new(MemoryEnvironment::new());
    let state = open(&environment, &LogStub::new());
    let first = entry(0, proposal(NOON, put("k", "1", 0)));
    let stream = futures::stream::iter([Ok((first, ())), Err(io::Error::other("torn"))]);
    let mut answered = 0;
    let error = state.apply(stream, |(), _| answered += 1).await.expect_err("is passed on");
    assert_eq!((error.to_string().as_str(), answered), ("torn", 0));
}

/// The clock stands still in this test but for who waits for it. The engine asks the disk after some thousand writes at the latest.
#[tokio::test(start_paused = true)]
async fn a_full_disk_is_waited_for() {
    const RESERVE: u64 = 16 << 20;
    const COUNT: usize = 3_000;
    let fs = SimFileSystem::new(1);
    let environment: Arc<dyn Environment> = lsm(&fs, 0, 1).expect("opens");
    let state = open(&environment, &LogStub::new());
    let fill = async |from: usize| {
        for index in from..from + COUNT {
            apply(&state, &[entry(index, proposal(NOON, put("k", "1", 0)))]).await?;
        }
        io::Result::Ok(())
    };
    fs.set_capacity(fs.used() + RESERVE - 1);
    let mut filling = Box::pin(fill(0));
    let waited = tokio::time::timeout(ROOM_WAIT_MAX / 2, &mut filling).await;
    assert!(waited.is_err() && next(&state) < COUNT, "it waits: {waited:?}");
    fs.set_capacity(u64::MAX);
    filling.await.expect("there is room");
    assert_eq!((next(&state), state.writes()), (COUNT, COUNT as u64), "none twice, none skipped");
    // Not for ever: whoever looks after the node shall see it.
    fs.set_capacity(fs.used() + RESERVE - 1);
    let full = fill(COUNT).await.expect_err("the disk stays full");
    assert!(full.to_string().contains("DISK_FULL"), "{full}");
}

#[tokio::test]
async fn only_the_stamps_of_entries_move_the_clock_and_never_backwards() {
    const HOUR: u64 = 3_600_000;
    for kind in KINDS {
        let disks = Disks::new(kind, 1);
        let environment = disks.open(0);
        let state = open(&environment, &LogStub::new());
        let tick = || Command { change: Change::Tick, request_id: None };
        // Stamp, command, and the keys that are there afterwards.
        let steps = [
            (NOON, put("five", "1", 5), vec!["five"]),
            (NOON - HOUR, put("ten", "1", 10), vec!["five", "ten"]),
            (NOON - HOUR, put("ever", "1", 0), vec!["ever", "five", "ten"]),
            (NOON + 4_999, tick(), vec!["ever", "five", "ten"]),
            (NOON - HOUR, tick(), vec!["ever", "five", "ten"]),
            (NOON + 5_000, tick(), vec!["ever", "ten"]),
            (NOON - HOUR, put("late", "1", 3), vec!["ever", "late", "ten"]),
            (NOON + 7_999, tick(), vec!["ever", "late", "ten"]),
            (NOON + 8_000, tick(), vec!["ever", "ten"]),
            (NOON + 10_000, tick(), vec!["ever"]),
        ];
        for (index, (stamp, command, keys)) in steps.into_iter().enumerate() {
            apply(&state, &[entry(index, proposal(stamp, command))]).await.expect("applies");
            let found: Vec<_> = documents(&state).into_keys().collect();
            assert_eq!(found, keys, "{kind:?}, step {index}");
        }
    }
}

#[tokio::test]
async fn what_is_not_flushed_is_counted() {
    let history = History::new(2, 50).await;
    let fs = SimFileSystem::new(1);
    let environment: Arc<dyn Environment> = lsm(&fs, 0, 1).expect("opens");
    let log = LogStub::new();
    let state = open(&environment, &log);
    assert_eq!((state.unflushed(), state.flushed()), (Unflushed::default(), None));
    apply(&state, &history.entries[..30]).await.expect("applies");
    let first = state.unflushed();
    assert_eq!(first.entries, 30);
    apply(&state, &history.entries[30..]).await.expect("applies");
    assert_eq!(state.unflushed().entries, 50);
    assert!(state.unflushed().bytes > first.bytes && first.bytes > 30 * 9);
    let commands: usize = history.outcomes.iter().map(|outcomes| outcomes.0.len()).sum();
    assert_eq!(state.writes(), commands as u64);
    build(&state).await.expect("builds");
    assert_eq!((state.unflushed(), next(&state)), (Unflushed::default(), 50));
    assert_eq!(state.flushed(), state.applied());
}
