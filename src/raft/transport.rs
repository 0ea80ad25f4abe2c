//! How messages reach other nodes: the seam that a simulated network replaces.
//!
//! [`Transport`] is what groups send through; [`Receiver`] is what a node does with what arrives. Both speak bytes (`message.rs`) and node names.
//! A transport knows where a node is reached, proves who it is and checks who the other is; it does not look into messages.
//!
//! # Contract
//!
//! * Messages of one [`Lane`] to one node reach [`Receiver::receive`] in the order in which they were sent, unless one of them fails: the future of
//!   one has been polled before the next one's is made. Replies may come in any order.
//! * A message may be lost, and then ends in an error; it may arrive although the sender got an error. It is not delivered twice.
//! * [`Failure::Unreachable`] means that it certainly did not arrive, [`Failure::Lost`] that nobody knows.
//! * Bounded: at most [`IN_FLIGHT_BYTES_MAX`] to one node on one lane wait for their reply; above that `call` waits, within its timeout.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::progress::Progress;
use super::types::NodeName;

/// Most bytes of requests to one node on one lane whose reply has not come.
pub const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;

/// Messages of one lane do not wait for those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Entries of the log.
    Entries,
    /// Signs of life, votes, reads, transfers: small, and late means an election.
    Control,
    /// Requests of callers of another node.
    Callers,
}

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The node cannot be reached, or refuses this one: certainly not delivered.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke or time was up before the reply came: may have been delivered.
    #[error("{0}")]
    Lost(String),
}

/// Sends to other nodes. Any thread, any time.
pub trait Transport: Send + Sync + 'static {
    /// Sends `message` to `node` and waits at most `timeout` for the reply. Its place among the messages of the lane is that of the call, not that of the
    /// future's first poll.
    fn call(
        &self,
        node: &NodeName,
        lane: Lane,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Failure>>;

    /// Sends the files in `directory` (flat, no folders in it) with `header` before them, and waits for the receiver's reply. Goes on where an earlier attempt with
    /// the same header broke off, as far as the receiver still has its files, and counts in `progress`. Dropping the future ends it.
    fn send_files(
        &self,
        node: &NodeName,
        header: Bytes,
        directory: PathBuf,
        progress: Arc<Progress>,
    ) -> BoxFuture<'static, Result<Bytes, Failure>>;
}

/// What the layers above do with the questions of other nodes, which are bytes to this one.
pub trait Answers: Send + Sync + 'static {
    /// Answers `from`, which is proven. It must not ask another node for it: a question goes one hop.
    fn answer(&self, from: &NodeName, question: Bytes) -> BoxFuture<'static, Bytes>;
}

/// What a node does with what arrives. `from` is proven.
pub trait Receiver: Send + Sync + 'static {
    /// Handles a message; the reply's bytes.
    fn receive(&self, from: &NodeName, message: Bytes) -> BoxFuture<'static, Bytes>;

    /// Where the files that `header` announces are put, before they come; `Err` is the reply that refuses them. May hold files of an earlier attempt. One
    /// transfer for one header at a time.
    fn staging(&self, from: &NodeName, header: &Bytes) -> Result<PathBuf, Bytes>;

    /// All files of `header` are in `directory`, checked and synced; the reply's bytes. The receiver removes the directory.
    fn received_files(
        &self,
        from: &NodeName,
        header: Bytes,
        directory: PathBuf,
    ) -> BoxFuture<'static, Bytes>;
}
