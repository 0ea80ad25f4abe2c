//! Confirming reads: one round to a quorum serves every read that waited when it began.
//!
//! A read may be answered from the state machine once that has applied everything that was committed when the read began (ReadIndex; Ongaro's dissertation,
//! 6.4). Asking a quorum for each read would cost a round trip and the leader's time for each; so reads queue, one round runs at a time, and its answer
//! goes to those who queued **before it began**: for a later one it proves nothing.

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::types::LogId;
use crate::error::{Error, Reason, Result};

/// What a read has to see: everything up to here; `None`: nothing was ever committed.
pub(super) type ReadIndex = Option<LogId>;

/// Reads that one round serves.
#[derive(Debug)]
pub(super) struct Round(Vec<oneshot::Sender<Result<ReadIndex>>>);

impl Round {
    /// Tells all of them.
    pub(super) fn answer(self, answer: &Result<ReadIndex>) {
        for read in self.0 {
            // It may have left.
            let _ = read.send(answer.clone());
        }
    }
}

/// The reads of one group that wait for a round.
#[derive(Debug, Default)]
pub(super) struct Reads {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    reads: Vec<oneshot::Sender<Result<ReadIndex>>>,
    closed: bool,
}

impl Reads {
    /// Waits for a round that began after this call.
    ///
    /// # Errors
    ///
    /// Those of the round.
    pub(super) async fn confirm(&self) -> Result<ReadIndex> {
        let (answer, answered) = oneshot::channel();
        let stopping = || Error::new(Reason::NotServing, "the node is stopping");
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(stopping());
            }
            waiting.reads.push(answer);
        }
        self.arrived.notify_one();
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Waits for reads and takes all that wait, for a round that begins now; `None` once closed.
    pub(super) async fn next(&self) -> Option<Round> {
        loop {
            let arrived = self.arrived.notified();
            let mut reads = {
                let mut waiting = self.waiting.lock();
                if waiting.closed {
                    return None;
                }
                std::mem::take(&mut waiting.reads)
            };
            // Those who left need no answer.
            reads.retain(|read| !read.is_closed());
            if !reads.is_empty() {
                return Some(Round(reads));
            }
            arrived.await;
        }
    }

    /// Tells all that wait.
    pub(super) fn answer_all(&self, answer: &Result<ReadIndex>) {
        Round(std::mem::take(&mut self.waiting.lock().reads)).answer(answer);
    }

    /// Ends the rounds; reads that wait are refused.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.reads.clear();
        drop(waiting);
        self.arrived.notify_one();
    }
}
