//! Commands on their way into the log of a group: whatever waits becomes one entry, here or at the leader.
//!
//! Commands of one node go into the log in the order in which they were queued, unless one has to be sent again. A command is in the queue, in flight, or
//! answered. What certainly was not applied goes back to the front of the queue and is tried again for as long as [`Proposals`]'s patience lasts; then its
//! caller is told so. What may have been applied is told to be unknown, unless the command has a request id: a repeat of it is applied once.
//!
//! Bounded: at most [`IN_FLIGHT_MAX`] entries of a group wait for their outcome, so that commands gather meanwhile; an entry holds at most
//! [`ENTRY_BYTES_MAX`] (one command may be larger and then goes alone) and [`ENTRY_COMMANDS_MAX`]; all commands of a node take their bytes from one [`Budget`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::planted::{self, Bug};
use crate::command::{Command, Outcome};
use crate::error::{Error, Reason, Result};
use crate::ticket::{Caller, Ticket, ticket};

/// Most entries of a group, proposed by this node, whose outcome is not known.
pub(super) const IN_FLIGHT_MAX: usize = 4;

/// Most bytes of commands that gather in one entry.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// Most commands that gather in one entry.
const ENTRY_COMMANDS_MAX: usize = 4096;

/// Bytes a command costs beside its keys and values.
const COMMAND_OVERHEAD_BYTES: usize = 256;

/// When to come back after the budget was spent.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Bytes of commands that all groups of a node hold in their queues and in flight.
#[derive(Debug, Clone)]
pub struct Budget {
    bytes_max: usize,
    kibibytes: Arc<Semaphore>,
}

impl Budget {
    /// A budget of `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, kibibytes: Arc::new(Semaphore::new(bytes_max / 1024)) }
    }

    /// Takes `bytes`, rounded up to KiB; more than there ever is counts as all of it.
    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let wanted = bytes.div_ceil(1024).min(self.bytes_max / 1024);
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        Arc::clone(&self.kibibytes).try_acquire_many_owned(wanted).map_err(|_| {
            let got = self.bytes_max - self.kibibytes.available_permits() * 1024;
            let message = format!(
                "{got} bytes of writes are on their way already; at most {} may be",
                self.bytes_max
            );
            Error::overloaded(message, RETRY_AFTER)
                .with("limit", "writes in flight")
                .with("max", self.bytes_max)
                .with("got", got)
                .with("unit", "bytes")
        })
    }
}

/// A command with its caller.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) command: Command,
    caller: Caller,
    since: Instant,
    /// It was sent once and may have been applied.
    maybe_applied: bool,
    _bytes: OwnedSemaphorePermit,
}

impl Queued {
    fn size_bytes(&self) -> usize {
        self.command.change.size_bytes() + COMMAND_OVERHEAD_BYTES
    }

    /// Answers with what came of it.
    pub(super) fn answer(self, outcome: Outcome) {
        self.caller.answer(Ok(outcome));
    }

    /// Answers with an error that means "not applied", unless it may have been earlier.
    pub(super) fn refuse(self, error: Error) {
        let error = if self.maybe_applied { unknown(error.message()) } else { error };
        self.caller.answer(Err(error));
    }
}

fn unknown(why: &str) -> Error {
    Error::new(Reason::OutcomeUnknown, format!("the write may or may not be applied: {why}"))
}

/// The commands of one group that wait.
#[derive(Debug)]
pub(super) struct Proposals {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    budget: Budget,
    /// How long a command is tried again before its caller is told that there is no leader.
    patience: Duration,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Queued>,
    closed: bool,
}

impl Proposals {
    pub(super) fn new(budget: Budget, patience: Duration) -> Self {
        Self { waiting: Mutex::default(), arrived: Notify::new(), budget, patience }
    }

    /// Queues a command.
    ///
    /// # Errors
    ///
    /// OVERLOADED, NOT_SERVING: certainly not applied.
    pub(super) fn push(&self, command: Command) -> Result<Ticket> {
        let bytes = self.budget.take(command.change.size_bytes() + COMMAND_OVERHEAD_BYTES)?;
        let (caller, ticket) = ticket();
        let queued =
            Queued { command, caller, since: Instant::now(), maybe_applied: false, _bytes: bytes };
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(stopping());
        }
        waiting.queue.push_back(queued);
        drop(waiting);
        self.arrived.notify_one();
        Ok(ticket)
    }

    /// Waits until there is something to propose; false when there never will be again.
    pub(super) async fn wait(&self) -> bool {
        loop {
            let arrived = self.arrived.notified();
            {
                let waiting = self.waiting.lock();
                if !waiting.queue.is_empty() {
                    return true;
                }
                if waiting.closed {
                    return false;
                }
            }
            arrived.await;
        }
    }

    /// Takes the commands of the next entry; may be none, when their callers have left.
    pub(super) fn take(&self) -> Vec<Queued> {
        let mut waiting = self.waiting.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = waiting.queue.front() {
            bytes += next.size_bytes();
            if !taken.is_empty() && (bytes > ENTRY_BYTES_MAX || taken.len() >= ENTRY_COMMANDS_MAX) {
                break;
            }
            let next = waiting.queue.pop_front().expect("it was just looked at");
            if next.maybe_applied || next.caller.take() {
                taken.push(next);
            }
        }
        taken
    }

    /// There is no leader: notes it for those who give up, and answers those who have waited for long enough.
    pub(super) fn without_leader(&self, group: &dyn std::fmt::Display) {
        let mut waiting = self.waiting.lock();
        let (late, rest): (VecDeque<_>, VecDeque<_>) =
            waiting.queue.drain(..).partition(|queued| queued.since.elapsed() >= self.patience);
        waiting.queue = rest;
        for queued in &waiting.queue {
            queued.caller.set_leaderless(true);
        }
        drop(waiting);
        for queued in late {
            if queued.maybe_applied || queued.caller.take() {
                let message = format!("{group} has no leader now; the write was not applied");
                queued.refuse(Error::new(Reason::NoLeader, message));
            }
        }
    }

    /// There is a leader again.
    pub(super) fn with_leader(&self) {
        for queued in &self.waiting.lock().queue {
            queued.caller.set_leaderless(false);
        }
    }

    /// Puts commands back that certainly were not applied by this attempt, to be tried again; those that have waited for long are told `why`.
    pub(super) fn put_back(&self, commands: Vec<Queued>, why: &Error) {
        let mut waiting = self.waiting.lock();
        let mut late = Vec::new();
        for queued in commands.into_iter().rev() {
            if waiting.closed || queued.since.elapsed() >= self.patience {
                late.push(queued);
                continue;
            }
            if !queued.maybe_applied {
                queued.caller.put_back();
            }
            waiting.queue.push_front(queued);
        }
        drop(waiting);
        for queued in late {
            queued.refuse(why.clone());
        }
        self.arrived.notify_one();
    }

    /// Commands that may have been applied, or will be: those with a request id are tried again, the others' callers are told.
    pub(super) fn lost(&self, commands: Vec<Queued>, why: &str) {
        let repeatable =
            |queued: &Queued| queued.command.request_id.is_some() || planted::is(Bug::BlindRepeat);
        let (repeatable, lost): (Vec<_>, Vec<_>) = commands.into_iter().partition(repeatable);
        for queued in lost {
            queued.caller.answer(Err(unknown(why)));
        }
        let repeatable = repeatable
            .into_iter()
            .map(|queued| Queued { maybe_applied: true, ..queued })
            .collect::<Vec<_>>();
        if !repeatable.is_empty() {
            self.put_back(repeatable, &unknown(why));
        }
    }

    /// Takes no more commands and refuses those that wait.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        let rest = std::mem::take(&mut waiting.queue);
        drop(waiting);
        for queued in rest {
            if queued.maybe_applied || queued.caller.take() {
                queued.refuse(stopping());
            }
        }
        self.arrived.notify_one();
    }
}

fn stopping() -> Error {
    Error::new(Reason::NotServing, "the node is stopping")
}
