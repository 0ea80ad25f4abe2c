//! Bugs on purpose: simulations plant one and must find it, or they would prove nothing.
//!
//! Each is a place in the code where somebody could take a short cut. In a build without tests [`is`] is constant and the short cuts are gone.

#[cfg(test)]
use std::cell::Cell;

use crate::util::time::Timestamp;

/// A short cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "only tests plant one"))]
pub(super) enum Bug {
    /// Written counts for durable: no fdatasync of the log.
    SkippedSync,
    /// A vote is not durable when it is given.
    UnsyncedVote,
    /// A leader takes silence for consent, and acknowledges what no majority has.
    CommitAlone,
    /// A write of which nobody knows whether it was applied is sent again without a request id.
    BlindRepeat,
    /// Repeats of a request id are applied again.
    NoDedup,
    /// Each replica takes the time of its own clock when it applies.
    LocalClock,
    /// A leader stamps the time of its wall clock.
    RawClock,
    /// The leader reads without asking a quorum whether it still leads.
    UnconfirmedRead,
    /// A confirmation also serves reads that came after it was asked for.
    LateRead,
    /// The log is purged up to what is applied, flushed or not.
    EarlyPurge,
    /// A replica that was just restarted votes at once.
    NoQuarantine,
    /// A node erases a replica because its own copy of the state does not name it.
    BlindErase,
    /// A node does not remember which replicas it has erased.
    NoTombstone,
}

#[cfg(test)]
thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether the running thread has this bug.
#[cfg(test)]
pub(super) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether the running thread has this bug.
#[cfg(not(test))]
pub(super) const fn is(_: Bug) -> bool {
    false
}

/// The time that an entry with this stamp is applied at.
#[cfg(test)]
pub(super) fn stamp(stamp: Timestamp) -> Timestamp {
    if !is(Bug::LocalClock) {
        return stamp;
    }
    thread_local! {
        static BEGINNING: tokio::time::Instant = tokio::time::Instant::now();
    }
    stamp.saturating_add(BEGINNING.with(tokio::time::Instant::elapsed))
}

/// The time that an entry with this stamp is applied at.
#[cfg(not(test))]
pub(super) const fn stamp(stamp: Timestamp) -> Timestamp {
    stamp
}

/// Runs `work` with a bug.
#[cfg(test)]
pub(super) fn with<T>(bug: Bug, work: impl FnOnce() -> T) -> T {
    struct Unplant;
    impl Drop for Unplant {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
    PLANTED.set(Some(bug));
    let _unplant = Unplant;
    work()
}
