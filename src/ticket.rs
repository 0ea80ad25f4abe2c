//! A command on its way: the caller's half, a [`Ticket`], and the half of whoever serves it, a [`Caller`].
//!
//! A command is **taken** once: by who serves it, which then will answer, or by its caller, who no longer waits. A caller who wins knows that it was
//! not applied; one who loses does not know the outcome yet.
//!
//! Callers: `shard/` and `raft/` serve; `router/` waits. Any thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::command::Outcome;
use crate::error::{Error, Reason, Result};

/// In a queue of this node.
const QUEUED: u8 = 0;
/// As [`QUEUED`], and there is no leader to hand it to.
const LEADERLESS: u8 = 1;
/// Somebody has decided what becomes of it.
const TAKEN: u8 = 2;

/// When to come back after a command waited in vain: about the time a few groups take.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Makes the two halves.
pub fn ticket() -> (Caller, Ticket) {
    let (reply, answer) = oneshot::channel();
    let state = Arc::new(AtomicU8::new(QUEUED));
    (Caller { state: Arc::clone(&state), reply }, Ticket { state, answer })
}

/// Who waits for an answer.
#[derive(Debug)]
pub struct Caller {
    state: Arc<AtomicU8>,
    reply: oneshot::Sender<Result<Outcome>>,
}

impl Caller {
    /// Decides to serve the command; false when its caller has left, and then it must not be applied.
    pub fn take(&self) -> bool {
        self.state.swap(TAKEN, Ordering::AcqRel) != TAKEN
    }

    /// Gives a command back to the queue that was taken and certainly not applied. Its caller may leave again.
    pub fn put_back(&self) {
        self.state.store(QUEUED, Ordering::Release);
    }

    /// Notes whether the command waits because there is no leader; changes nothing once it was taken.
    pub fn set_leaderless(&self, leaderless: bool) {
        let (from, to) = if leaderless { (QUEUED, LEADERLESS) } else { (LEADERLESS, QUEUED) };
        // Taken, or noted already.
        let _ = self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Tells what came of it.
    pub fn answer(self, answer: Result<Outcome>) {
        // A caller that left before its answer came is no concern of the others.
        let _ = self.reply.send(answer);
    }
}

/// The answer to a proposal, once it comes.
///
/// Dropping it gives the command up: it is not applied if it was still queued, and applied without a listener otherwise.
#[derive(Debug)]
pub struct Ticket {
    state: Arc<AtomicU8>,
    answer: oneshot::Receiver<Result<Outcome>>,
}

impl Ticket {
    /// Gives up waiting: the error says whether the command was certainly not applied (OVERLOADED, NO_LEADER) or nobody knows yet
    /// (OUTCOME_UNKNOWN).
    pub fn give_up(&self) -> Error {
        match self.state.swap(TAKEN, Ordering::AcqRel) {
            QUEUED => {
                let message = "the deadline passed while the write was queued; it was not applied";
                Error::overloaded(message, RETRY_AFTER)
            }
            LEADERLESS => {
                let message =
                    "the deadline passed while the shard had no leader; the write was not applied";
                Error::new(Reason::NoLeader, message)
            }
            _ => Error::new(
                Reason::OutcomeUnknown,
                "the deadline passed before the write was acknowledged; it may or may not be applied",
            ),
        }
    }
}

impl Future for Ticket {
    type Output = Result<Outcome>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| {
            answer.unwrap_or_else(|_| {
                Err(Error::new(
                    Reason::OutcomeUnknown,
                    "the node stopped before the write was acknowledged",
                ))
            })
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.state.store(TAKEN, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_first_decides() {
        let (caller, left) = ticket();
        assert_eq!(left.give_up().reason(), Reason::Overloaded);
        assert!(!caller.take());
        let (caller, waiting) = ticket();
        assert!(caller.take() && !caller.take());
        assert_eq!(waiting.give_up().reason(), Reason::OutcomeUnknown);
        let (caller, dropped) = ticket();
        drop(dropped);
        assert!(!caller.take());
    }

    #[test]
    fn a_command_without_a_leader_says_so_until_it_is_taken() {
        let (caller, waiting) = ticket();
        caller.set_leaderless(true);
        assert_eq!(waiting.give_up().reason(), Reason::NoLeader);
        let (caller, waiting) = ticket();
        caller.set_leaderless(true);
        caller.set_leaderless(false);
        assert_eq!(waiting.give_up().reason(), Reason::Overloaded);
        let (caller, waiting) = ticket();
        assert!(caller.take());
        caller.set_leaderless(true);
        assert_eq!(waiting.give_up().reason(), Reason::OutcomeUnknown);
        let (caller, waiting) = ticket();
        assert!(caller.take());
        caller.put_back();
        assert_eq!(waiting.give_up().reason(), Reason::Overloaded);
    }
}
