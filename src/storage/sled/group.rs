//! Coalescing of syncs: callers that wait at the same time share one.
//!
//! Syncs are numbered rounds. What is written before a round begins is covered by it; so a writer asks, after its write, for
//! the number of the **next** round, and waits until that one has ended. The first to wait when no round runs leads it.

use parking_lot::{Condvar, Mutex};

use crate::storage::Result;

/// Numbers a sync. Zero was before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Round(u64);

#[derive(Debug, Default)]
struct Rounds {
    begun: Round,
    /// The newest that succeeded.
    ended: Round,
    running: bool,
}

/// A sync that many threads share.
#[derive(Debug, Default)]
pub(super) struct GroupSync {
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

impl GroupSync {
    /// The first round that covers everything written before this call.
    pub(super) fn next_round(&self) -> Round {
        Round(self.rounds.lock().begun.0 + 1)
    }

    /// The newest round that succeeded.
    pub(super) fn ended(&self) -> Round {
        self.rounds.lock().ended
    }

    /// Waits until `round` or a later one succeeded, leading rounds by calling `sync` when nobody else does. After a failure
    /// everyone who waits leads a round of his own, so `sync` has to refuse by itself once it failed.
    pub(super) fn wait(&self, round: Round, sync: impl Fn() -> Result<()>) -> Result<()> {
        let mut rounds = self.rounds.lock();
        while rounds.ended < round {
            if rounds.running {
                self.ended.wait(&mut rounds);
                continue;
            }
            rounds.running = true;
            rounds.begun.0 += 1;
            let mine = rounds.begun;
            drop(rounds);
            let result = sync();
            rounds = self.rounds.lock();
            rounds.running = false;
            if result.is_ok() {
                rounds.ended = mine;
            }
            self.ended.notify_all();
            result?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::storage::Error;

    #[test]
    fn barrier_after_a_covering_round_costs_nothing() {
        let group = GroupSync::default();
        let round = group.next_round();
        let syncs = AtomicU64::new(0);
        let sync = || {
            syncs.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        group.wait(round, sync).expect("syncs");
        group.wait(round, sync).expect("is covered");
        assert_eq!(syncs.load(Ordering::SeqCst), 1);
        assert!(group.ended() >= round && group.next_round() > round);
    }

    #[test]
    fn write_during_a_round_waits_for_the_next() {
        let group = Arc::new(GroupSync::default());
        let first = group.next_round();
        let during = Mutex::new(None);
        group
            .wait(first, || {
                *during.lock() = Some(group.next_round());
                Ok(())
            })
            .expect("syncs");
        let during = during.lock().expect("the round ran");
        assert!(during > group.ended());
    }

    #[test]
    fn failed_round_covers_nothing() {
        let group = GroupSync::default();
        let round = group.next_round();
        let failure = || Err(Error::Poisoned { cause: "test".to_owned() });
        assert!(group.wait(round, failure).is_err());
        assert!(group.ended() < round);
    }
}
