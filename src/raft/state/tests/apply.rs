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
