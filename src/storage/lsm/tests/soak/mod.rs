//! Long random histories of the whole engine: everything a caller can do, at settings so small that everything the engine
//! can do happens, compared with a map at each step. Views live on over flushes, compactions and more; in the middle the
//! engine is closed, killed, loses power, is replaced by a copy of itself, and goes on with other settings.
//!
//! `cargo test` does few. For more, and on all processors:
//!
//! ```text
//! KVSTORE_SOAK_OPERATIONS=10000000 cargo test --profile soak --lib -- --nocapture lsm::tests::soak
//! ```
//!
//! A failure prints the seed of its history. `KVSTORE_SOAK_SEED` takes one and begins with it. Settings without threads
//! repeat exactly, others almost always.

mod model;
mod run;

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use self::run::{Figures, Run};

/// Operations of one history.
const OPERATIONS_EACH: u64 = 10_000;

/// Operations in all, unless more are asked for.
const OPERATIONS: u64 = 6 * OPERATIONS_EACH;

/// From this many on, everything the engine does by itself happens somewhere, whatever settings were drawn. In fewer histories the
/// rarest of it, a compaction because entries expired, may be missing.
const OPERATIONS_THAT_SHOW_ALL: u64 = 100 * OPERATIONS_EACH;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Says how to repeat a history that fails.
struct Repeat(u64);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("repeat with KVSTORE_SOAK_SEED={}", self.0);
        }
    }
}

#[test]
fn a_long_history_reads_as_a_map_whatever_happens_meanwhile() {
    let operations = variable("KVSTORE_SOAK_OPERATIONS").unwrap_or(OPERATIONS);
    let seed = variable("KVSTORE_SOAK_SEED").unwrap_or_else(rand::random);
    println!("first seed {seed}");
    let (histories, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let figures = Mutex::new(Figures::new());
    let work = || {
        loop {
            let number = histories.fetch_add(1, Ordering::Relaxed);
            if number * OPERATIONS_EACH >= operations {
                return;
            }
            let repeat = Repeat(seed.wrapping_add(number));
            let mut run = Run::new(repeat.0);
            for _ in 0..OPERATIONS_EACH {
                run.step();
                done.fetch_add(1, Ordering::Relaxed);
            }
            for (name, figure) in run.finish() {
                *figures.lock().entry(name).or_default() += figure;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let done = done.into_inner();
    println!("{done} operations: {:?}", figures.lock());
    assert!(done >= operations);
    if operations < OPERATIONS_THAT_SHOW_ALL {
        return;
    }
    // Otherwise it would show little.
    for happened in [
        "flushes",
        "compactions_level_zero",
        "compactions_size",
        "compactions_dead",
        "compactions_tombstones",
        "compactions_expired",
        "compactions_manual",
    ] {
        assert!(figures.lock()[happened] > 0.0, "{happened}: none");
    }
}
