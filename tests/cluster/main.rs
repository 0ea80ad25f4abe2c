//! Clusters of real processes under load and faults: what clients saw is linearizable, what was acknowledged is there, all nodes hold
//! the same.
//!
//! `KVSTORE_TEST_CLUSTER_SECONDS` is how long each test makes faults (default 2), `KVSTORE_TEST_CLUSTER_SEED` repeats the choices of a
//! run (not its timing), `KVSTORE_TEST_CLUSTER_ROUNDS` how often `failover` kills a leader, and `members` a node that takes part in a move
//! (default 3). Run with `--nocapture` to see
//! the figures of each run; `tests/README.md` maps each promise to its test.
//!
//! The parts: `process` and `cluster` start nodes, `operator` runs commands, `proxy` is the network between them, `client` and `load` are the clients, `nemesis` the
//! faults, `watch` the figures, `story` what every run has in common. The oracle is the crate `linz`.

mod alone;
mod bars;
mod client;
mod cluster;
mod failover;
mod load;
mod members;
mod nemesis;
mod operator;
mod process;
mod proxy;
mod replicas;
mod story;
mod watch;

use std::time::Duration;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a run proves nothing.
#[derive(Debug)]
struct Void(String);

/// How long a test makes faults.
fn seconds() -> Duration {
    Duration::from_secs(number("KVSTORE_TEST_CLUSTER_SECONDS").unwrap_or(2))
}

/// How often a test does what takes long.
fn rounds() -> usize {
    number("KVSTORE_TEST_CLUSTER_ROUNDS").map_or(3, |rounds| rounds.try_into().expect("a few"))
}

/// Where a run's choices begin.
fn seed() -> u64 {
    number("KVSTORE_TEST_CLUSTER_SEED").unwrap_or_else(rand::random)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}
