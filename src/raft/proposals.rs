//! Commands on their way into the log of a group: whatever waits becomes one entry, here or at the leader. They wait in the group's place, whether or not a replica is there.
//!
//! What waits comes from callers of this node, one command each, and from other nodes, which pass on what their callers ask: those commands stay together. All go
//! into the log in the order in which they were queued, unless one has to be sent again.
//!
//! A command of this node's callers is in the queue, in flight, or answered. What certainly was not applied goes back to the front of the queue and is tried again
//! for as long as [`Proposals`]'s patience lasts; then its caller is told so. What may have been applied is told to be unknown, unless the command has a
//! request id: a repeat of it is applied once. What another node has passed on is tried once, here; that node tries again, so that nothing is passed on twice.
//!
//! Bounded: at most [`IN_FLIGHT_MAX`] entries of a group wait for their outcome, so that commands gather meanwhile; an entry holds at most
//! [`ENTRY_BYTES_MAX`] (one command, or what one node passed on, may be larger and then goes alone); all commands of a node take their bytes from one [`Budget`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::message::{Refusal, Reply};
use super::planted::{self, Bug};
use crate::command::{Command, Outcome};
use crate::error::{Error, Reason, Result};
use crate::ticket::{Caller, Ticket, ticket};

/// Most entries of a group, proposed by this node, whose outcome is not known.
pub(super) const IN_FLIGHT_MAX: u32 = 4;

/// Most bytes of commands that gather in one entry.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// Bytes a command costs beside its keys and values; so no more than 4096 gather in one entry.
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

/// Commands with who waits for them.
#[derive(Debug)]
pub(super) struct Queued {
    origin: Origin,
    since: Instant,
    _bytes: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Origin {
    /// A caller of this node.
    Caller {
        command: Command,
        caller: Caller,
        /// It was sent once and may have been applied.
        maybe_applied: bool,
    },
    /// Another node.
    Node { commands: Vec<Command>, reply: oneshot::Sender<Reply> },
}

impl Queued {
    /// The commands, at least one.
    pub(super) fn commands(&self) -> &[Command] {
        match &self.origin {
            Origin::Caller { command, .. } => std::slice::from_ref(command),
            Origin::Node { commands, .. } => commands,
        }
    }

    /// Whether they only make room.
    pub(super) fn is_delete(&self) -> bool {
        self.commands().iter().all(Command::is_delete)
    }

    /// Decides to propose them; false when nobody waits any more, and then they must not be applied.
    fn take(&self) -> bool {
        match &self.origin {
            Origin::Caller { caller, maybe_applied, .. } => *maybe_applied || caller.take(),
            Origin::Node { reply, .. } => !reply.is_closed(),
        }
    }

    /// Answers with what came of each, the next of `outcomes`.
    pub(super) fn answer(self, outcomes: &mut impl Iterator<Item = Outcome>) {
        match self.origin {
            Origin::Caller { caller, .. } => {
                let lost = || unknown("the outcomes do not fit");
                caller.answer(outcomes.next().ok_or_else(lost));
            }
            Origin::Node { commands, reply } => {
                // A node that has gone does not care.
                let _ = reply.send(Reply::Applied(outcomes.take(commands.len()).collect()));
            }
        }
    }

    /// Answers with an error that means "not applied", unless it may have been earlier.
    pub(super) fn refuse(self, error: Error) {
        match self.origin {
            Origin::Caller { caller, maybe_applied, .. } => {
                caller.answer(Err(if maybe_applied { unknown(error.message()) } else { error }));
            }
            Origin::Node { reply, .. } => {
                let _ = reply.send(Reply::Refused(refusal(&error)));
            }
        }
    }

    /// Answers that nobody knows.
    fn lose(self, why: &str) {
        match self.origin {
            Origin::Caller { caller, .. } => caller.answer(Err(unknown(why))),
            Origin::Node { reply, .. } => {
                let _ = reply.send(Reply::Refused(Refusal::Unknown(why.to_owned())));
            }
        }
    }
}

fn size_bytes(command: &Command) -> usize {
    command.change.size_bytes() + COMMAND_OVERHEAD_BYTES
}

/// How another node is told of an error that means "not applied".
pub(super) fn refusal(error: &Error) -> Refusal {
    let why = error.message().to_owned();
    match error.reason() {
        Reason::NoLeader => Refusal::NotLeader(None),
        Reason::NoQuorum => Refusal::NoQuorum(why),
        Reason::Overloaded => Refusal::Overloaded(why),
        Reason::DiskFull => Refusal::DiskFull(why),
        Reason::FailedPrecondition => Refusal::Precondition(why),
        _ => Refusal::NotHere(why),
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
        let bytes = self.budget.take(size_bytes(&command))?;
        let (caller, ticket) = ticket();
        self.enqueue(Origin::Caller { command, caller, maybe_applied: false }, bytes)?;
        Ok(ticket)
    }

    /// Queues commands that another node passed on; what comes of them arrives together.
    ///
    /// # Errors
    ///
    /// OVERLOADED, NOT_SERVING: certainly not applied.
    pub(super) fn push_passed_on(
        &self,
        commands: Vec<Command>,
    ) -> Result<oneshot::Receiver<Reply>> {
        let bytes = self.budget.take(commands.iter().map(size_bytes).sum())?;
        let (reply, answer) = oneshot::channel();
        self.enqueue(Origin::Node { commands, reply }, bytes)?;
        Ok(answer)
    }

    fn enqueue(&self, origin: Origin, bytes: OwnedSemaphorePermit) -> Result<()> {
        let queued = Queued { origin, since: Instant::now(), _bytes: bytes };
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(stopping());
        }
        waiting.queue.push_back(queued);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
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

    /// Takes the commands of the next entry; may be none, when nobody waits for them any more. Where this node does not lead, what others have passed
    /// on is refused.
    pub(super) fn take(&self, leads: bool) -> Vec<Queued> {
        let mut waiting = self.waiting.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(next) = waiting.queue.front() {
            bytes += next.commands().iter().map(size_bytes).sum::<usize>();
            if !taken.is_empty() && bytes > ENTRY_BYTES_MAX {
                break;
            }
            let next = waiting.queue.pop_front().expect("it was just looked at");
            if !leads && matches!(next.origin, Origin::Node { .. }) {
                next.refuse(not_leading());
            } else if next.take() {
                taken.push(next);
            }
        }
        taken
    }

    /// There is no leader, for this reason: notes it for those who give up, and answers those who have waited for long enough, and other nodes.
    pub(super) fn without_leader(&self, why: &Error) {
        let mut waiting = self.waiting.lock();
        let (late, rest): (VecDeque<_>, VecDeque<_>) =
            waiting.queue.drain(..).partition(|queued| {
                matches!(queued.origin, Origin::Node { .. })
                    || queued.since.elapsed() >= self.patience
            });
        waiting.queue = rest;
        for queued in &waiting.queue {
            if let Origin::Caller { caller, .. } = &queued.origin {
                caller.set_leaderless(true);
            }
        }
        drop(waiting);
        for queued in late {
            if queued.take() {
                let message = format!("{}; the write was not applied", why.message());
                queued.refuse(Error::new(why.reason(), message));
            }
        }
    }

    /// There is a leader again.
    pub(super) fn with_leader(&self) {
        for queued in &self.waiting.lock().queue {
            if let Origin::Caller { caller, .. } = &queued.origin {
                caller.set_leaderless(false);
            }
        }
    }

    /// Puts commands back that certainly were not applied by this attempt, to be tried again; those that have waited for long are told `why`, and so
    /// are other nodes, which try again themselves.
    pub(super) fn put_back(&self, commands: Vec<Queued>, why: &Error) {
        let mut waiting = self.waiting.lock();
        let mut late = Vec::new();
        for queued in commands.into_iter().rev() {
            let is_late = waiting.closed || queued.since.elapsed() >= self.patience;
            match &queued.origin {
                Origin::Caller { caller, maybe_applied, .. } if !is_late => {
                    if !maybe_applied {
                        caller.put_back();
                        caller.set_leaderless(why.reason() == Reason::NoLeader);
                    }
                    waiting.queue.push_front(queued);
                }
                _ => late.push(queued),
            }
        }
        drop(waiting);
        for queued in late {
            match &queued.origin {
                Origin::Caller { .. } => queued.refuse(why.clone()),
                Origin::Node { .. } => queued.refuse(not_leading()),
            }
        }
        self.arrived.notify_one();
    }

    /// Commands that may have been applied, or will be: those of this node's callers with a request id are tried again, who waits for the others is told.
    pub(super) fn lost(&self, commands: Vec<Queued>, why: &str) {
        let mut repeatable = Vec::new();
        for mut queued in commands {
            match &mut queued.origin {
                Origin::Caller { command, maybe_applied, .. }
                    if command.request_id.is_some() || planted::is(Bug::BlindRepeat) =>
                {
                    *maybe_applied = true;
                    repeatable.push(queued);
                }
                _ => queued.lose(why),
            }
        }
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
            if queued.take() {
                queued.refuse(stopping());
            }
        }
        self.arrived.notify_one();
    }
}

/// What another node is told that took this one for the leader.
fn not_leading() -> Error {
    Error::new(Reason::NoLeader, "this node does not lead the group")
}

fn stopping() -> Error {
    Error::new(Reason::NotServing, "the node is stopping")
}

#[cfg(test)]
mod tests;
