//! What happened in a run, in figures: a run whose faults had no effect proves nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvstore::router::shard_of;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::{Reach, View, leaders};

/// How often leaders are asked for.
const EVERY: Duration = Duration::from_millis(100);

/// The longest time without an acknowledged write, for each shard.
pub(crate) struct Gaps {
    shards: Vec<Mutex<Gap>>,
}

struct Gap {
    last: Instant,
    longest: Duration,
}

impl Gaps {
    pub(crate) fn new(shards: u32) -> Self {
        let gap = || Mutex::new(Gap { last: Instant::now(), longest: Duration::ZERO });
        Self { shards: (0..shards).map(|_| gap()).collect() }
    }

    /// A write of a key was acknowledged.
    pub(crate) fn written(&self, key: &str) {
        let shard = shard_of(key.as_bytes(), u32::try_from(self.shards.len()).expect("few shards"));
        let mut gap = self.shards[shard.0 as usize].lock().unwrap_or_else(PoisonError::into_inner);
        gap.longest = gap.longest.max(gap.last.elapsed());
        gap.last = Instant::now();
    }

    pub(crate) fn longest(&self) -> Vec<Duration> {
        let longest = |gap: &Mutex<Gap>| gap.lock().unwrap_or_else(PoisonError::into_inner).longest;
        self.shards.iter().map(longest).collect()
    }
}

/// Counts how often shards change their leader.
pub(crate) struct Leaders {
    changes: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Leaders {
    pub(crate) fn watch(nodes: watch::Receiver<Vec<Reach>>) -> Self {
        let changes = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&changes);
        let task = tokio::spawn(async move {
            let mut known: View = BTreeMap::new();
            loop {
                let now = nodes.borrow().clone();
                for (shard, leader) in leaders(&now).await {
                    let before = known.insert(shard, leader.clone());
                    if before.is_some_and(|before| before != leader) {
                        *counted.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                    }
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        Self { changes, task }
    }

    pub(crate) fn changes(&self) -> usize {
        *self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Leaders {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Durations that were measured, smallest first.
#[derive(Debug, Default)]
pub(crate) struct Distribution {
    sorted: Vec<Duration>,
}

impl Distribution {
    pub(crate) fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        Self { sorted: durations }
    }

    /// The smallest duration that `percent` of all do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied().unwrap_or_default()
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} measured:", self.sorted.len())?;
        for (name, percent) in [("min", 0), ("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)] {
            write!(f, " {name} {} ms", self.percentile(percent).as_millis())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let distribution = Distribution::of((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(
            distribution.to_string(),
            "200 measured: min 1 ms p50 100 ms p90 180 ms p99 198 ms max 200 ms"
        );
        assert_eq!(Distribution::of(Vec::new()).percentile(99), Duration::ZERO);
    }
}
