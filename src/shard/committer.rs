//! The thread that turns proposals into durable writes: the seam between async callers and the blocking engine.
//!
//! Callers queue proposals; the thread takes all that wait, applies them shard by shard in the order they came, makes the
//! whole group durable with one sync, then answers. While a group syncs the next one gathers: the slower the disk, the larger
//! the groups.
//!
//! * The queue is bounded in bytes ([`QUEUE_BYTES_MAX`]); above it proposals are refused with OVERLOADED, not applied.
//! * Proposals of one shard apply in the order they were queued: a shard belongs to one committer.
//! * What a caller no longer waits for is not applied (`ticket`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::replica::Replica;
use crate::command::{Change, Command, Outcome};
use crate::error::{Error, Reason, Result};
use crate::machine::Group;
use crate::storage::{self, Durability, WriteBatch};
use crate::ticket::Caller;
use crate::util::time::Clock;
use parking_lot::{Condvar, Mutex};

/// Most bytes of proposals that wait in one committer's queue.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Most bytes that one group applies before it syncs, so that the first does not wait for the last for long. One proposal may be
/// larger and then goes alone.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// Bytes a proposal costs beside its keys and values: row headers, reply channel, queue slot.
const PROPOSAL_OVERHEAD_BYTES: usize = 256;

/// When to come back after the queue was full: about the time a few groups take.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// A command on its way to one replica.
pub(super) struct Proposal {
    pub(super) replica: Arc<Replica>,
    pub(super) command: Command,
    pub(super) caller: Caller,
}

impl Proposal {
    fn size_bytes(&self) -> usize {
        self.command.change.size_bytes() + PROPOSAL_OVERHEAD_BYTES
    }
}

/// Commits the proposals of some of a node's shards on a thread of its own. Dropping it commits what is queued, then stops the
/// thread.
pub struct Committer {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// Starts the thread. A write is answered once it is as safe as `durability` says; stamps come from `clock`.
    ///
    /// # Errors
    ///
    /// When the operating system has no more threads.
    pub fn start(
        name: String,
        durability: Durability,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let worker = Worker { queue: Arc::clone(&queue), durability, clock };
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _abort = AbortOnPanic;
            worker.run();
        })?;
        Ok(Self { queue, thread: Some(thread) })
    }

    pub(super) fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.queue)
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a panic of the thread ends the process");
        }
    }
}

/// Ends the process when the thread panics. Its shards would take proposals that nobody applies, behind a health that knows nothing;
/// a process that ends is restarted, and a crash loses nothing that was acknowledged.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The panic's own message went to standard error already.
            eprintln!("kvstore: a thread that commits writes panicked; ending the process");
            std::process::abort();
        }
    }
}

/// Proposals that wait.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    proposals: VecDeque<Proposal>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    /// Queues a proposal, or refuses it.
    pub(super) fn push(&self, proposal: Proposal) -> Result<()> {
        let size = proposal.size_bytes();
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(Error::new(Reason::NotServing, "the node is stopping"));
        }
        if waiting.bytes > 0 && waiting.bytes + size > QUEUE_BYTES_MAX {
            let message = format!(
                "{} bytes of writes wait for the disk already; at most {QUEUE_BYTES_MAX} may",
                waiting.bytes
            );
            return Err(Error::overloaded(message, RETRY_AFTER)
                .with("limit", "write queue")
                .with("max", QUEUE_BYTES_MAX)
                .with("got", waiting.bytes)
                .with("unit", "bytes"));
        }
        waiting.bytes += size;
        waiting.proposals.push_back(proposal);
        let first = waiting.proposals.len() == 1;
        drop(waiting);
        if first {
            self.arrived.notify_one();
        }
        Ok(())
    }

    fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Waits for proposals and takes a group of them; `None` when the queue is closed and empty.
    fn take(&self) -> Option<Vec<Proposal>> {
        let mut waiting = self.waiting.lock();
        while waiting.proposals.is_empty() {
            if waiting.closed {
                return None;
            }
            self.arrived.wait(&mut waiting);
        }
        let mut bytes = 0;
        let mut count = 0;
        for proposal in &waiting.proposals {
            bytes += proposal.size_bytes();
            if count > 0 && bytes > GROUP_BYTES_MAX {
                bytes -= proposal.size_bytes();
                break;
            }
            count += 1;
        }
        waiting.bytes -= bytes;
        Some(waiting.proposals.drain(..count).collect())
    }
}

struct Worker {
    queue: Arc<Queue>,
    durability: Durability,
    clock: Arc<dyn Clock>,
}

/// One shard's part of a group.
struct Part {
    replica: Arc<Replica>,
    /// Answers in the order of `callers`, and the group number that readers wait for.
    outcome: Result<(Vec<Result<Outcome>>, u64)>,
    callers: Vec<Caller>,
}

impl Worker {
    fn run(self) {
        while let Some(proposals) = self.queue.take() {
            self.commit(proposals);
        }
    }

    /// Applies a group, makes it durable, answers.
    fn commit(&self, mut proposals: Vec<Proposal>) {
        // What nobody waits for any more is dropped before it is applied, not after.
        proposals.retain(|proposal| proposal.caller.take());
        // Stable: within a shard the order of the queue stays.
        proposals.sort_by_key(|proposal| proposal.replica.id);
        let mut parts = Vec::new();
        let mut rest = proposals.into_iter().peekable();
        while let Some(first) = rest.next() {
            let replica = Arc::clone(&first.replica);
            let mut part = vec![first];
            while let Some(next) = rest.next_if(|next| next.replica.id == replica.id) {
                part.push(next);
            }
            parts.push(self.apply(replica, part));
        }
        // The first barrier syncs; the others find that their writes are covered by it.
        for part in &mut parts {
            self.make_durable(part);
        }
        for part in parts {
            part.answer();
        }
    }

    /// Applies one shard's proposals to its engine, as one batch, not durable yet.
    fn apply(&self, replica: Arc<Replica>, proposals: Vec<Proposal>) -> Part {
        let outcome = match self.write(&replica, &proposals, None) {
            // Deleting is what helps, and engines keep a reserve for it.
            Err(full) if full.reason() == Reason::DiskFull && proposals.iter().any(is_delete) => {
                self.write(&replica, &proposals, Some(&full))
            }
            outcome => outcome,
        };
        let callers = proposals.into_iter().map(|proposal| proposal.caller).collect();
        Part { replica, outcome, callers }
    }

    /// Writes the group; with `full` only its deletes, and the others get that for an answer.
    fn write(
        &self,
        replica: &Replica,
        proposals: &[Proposal],
        full: Option<&Error>,
    ) -> Result<(Vec<Result<Outcome>>, u64)> {
        let last_version = replica.last_version();
        let now = self.clock.now();
        let mut group = Group::new(&*replica.engine, last_version);
        let mut outcomes = Vec::with_capacity(proposals.len());
        for proposal in proposals {
            outcomes.push(match full {
                Some(full) if !is_delete(proposal) => Err(full.clone()),
                _ => Ok(group.apply(&proposal.command, now)?),
            });
        }
        let (batch, last_version) = group.finish(last_version);
        let number = replica.begin_group();
        let durability =
            if self.durability == Durability::Sync { Durability::None } else { self.durability };
        match replica.engine.write(&batch, durability) {
            Ok(_) => {
                let applied = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
                replica.group_applied(last_version, applied);
                Ok((outcomes, number))
            }
            Err(error) => {
                tracing::error!(shard = %replica.id, %error, "a write failed");
                let unknown = may_be_applied(replica, &error);
                replica.settle(number, unknown);
                Err(if unknown { Error::from_failed_write(&error) } else { error.into() })
            }
        }
    }

    fn make_durable(&self, part: &mut Part) {
        let Ok((_, number)) = part.outcome else { return };
        if self.durability == Durability::Sync
            && let Err(error) = part.replica.engine.write(&WriteBatch::new(), Durability::Sync)
        {
            tracing::error!(shard = %part.replica.id, %error, "making writes durable failed");
            part.replica.settle(number, true);
            let message = format!("the write may or may not survive a restart: {error}");
            part.outcome = Err(Error::new(Reason::OutcomeUnknown, message));
            return;
        }
        part.replica.settle(number, false);
    }
}

fn is_delete(proposal: &Proposal) -> bool {
    matches!(proposal.command.change, Change::Delete { .. })
}

/// Whether a batch whose write failed with `error` may be visible, as the engine's contract says.
fn may_be_applied(replica: &Replica, error: &storage::Error) -> bool {
    use storage::Error as E;
    let refused = matches!(
        error,
        E::Invalid(_) | E::Poisoned { .. } | E::DiskFull { .. } | E::NoHandles { .. }
    );
    !refused && !replica.engine.status().writable
}

impl Part {
    fn answer(self) {
        match self.outcome {
            Ok((outcomes, _)) => {
                for (caller, outcome) in self.callers.into_iter().zip(outcomes) {
                    caller.answer(outcome);
                }
            }
            Err(error) => {
                for caller in self.callers {
                    caller.answer(Err(error.clone()));
                }
            }
        }
    }
}
