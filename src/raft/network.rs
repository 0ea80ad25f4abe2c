//! What openraft sends through: turns its calls into messages to one replica, and their replies back. Knows no sockets; the [`Transport`] does.
//!
//! Appends are pipelined: up to [`WINDOW`] requests wait for their replies, which come back in the order of the requests.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use openraft::RaftNetworkFactory;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkV2};
use openraft::raft::{
    SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderResponse,
};
use tokio::sync::Notify;
use uuid::Uuid;

use super::blocking::blocking;
use super::commits::hold_back;
use super::files::remove_files;
use super::message::{Envelope, Refusal, Reply, Request};
use super::planted::{self, Bug};
use super::state::SnapshotData;
use super::transport::{Failure, Lane, Transport};
use super::types::{
    AppendReply, AppendRequest, GroupId, LogId, NodeName, ReplicaId, Snapshot, TransferRequest,
    TypeConfig, Vote, VoteReply, VoteRequest,
};
use crate::util::fs::FileSystem;

/// Most append requests to one replica whose reply has not come. Their bytes are bounded by the transport.
const WINDOW: usize = 16;

type CallError = RPCError<TypeConfig>;

/// Makes the clients of one replica.
#[derive(Clone)]
pub(super) struct Network {
    pub(super) cluster: Uuid,
    pub(super) group: GroupId,
    pub(super) replica: ReplicaId,
    pub(super) transport: Arc<dyn Transport>,
    /// How long entries may take to be answered. openraft's own limit, that of a sign of life, would stop replication over slow networks.
    pub(super) append_timeout: Duration,
    /// Set while this replica leads without a quorum that answers: see [`Group`](super::Group).
    pub(super) silent: Arc<AtomicBool>,
    /// Tells that a read on another node waits for what is committed.
    pub(super) commit_wanted: Arc<Notify>,
    /// Where checkpoints are made that are sent, and the file system it is on.
    pub(super) outbox: PathBuf,
    pub(super) fs: Arc<dyn FileSystem>,
}

impl Network {
    fn client(&self, target: ReplicaId, node: &NodeName, lane: Lane) -> Peer {
        let Self { cluster, group, replica: from, .. } = *self;
        Peer {
            envelope: Envelope { cluster, group, from, to: target },
            node: node.clone(),
            lane,
            transport: Arc::clone(&self.transport),
            append_timeout: self.append_timeout,
            silent: Arc::clone(&self.silent),
            commit_wanted: Arc::clone(&self.commit_wanted),
            outbox: self.outbox.clone(),
            fs: Arc::clone(&self.fs),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: ReplicaId, node: &NodeName) -> Peer {
        self.client(target, node, Lane::Entries)
    }

    async fn new_heartbeat_client(&mut self, target: ReplicaId, node: &NodeName) -> Peer {
        self.client(target, node, Lane::Control)
    }
}

/// One replica on another node.
pub(super) struct Peer {
    envelope: Envelope,
    node: NodeName,
    lane: Lane,
    transport: Arc<dyn Transport>,
    append_timeout: Duration,
    silent: Arc<AtomicBool>,
    commit_wanted: Arc<Notify>,
    outbox: PathBuf,
    fs: Arc<dyn FileSystem>,
}

impl Peer {
    /// Sends now; the future waits for the reply.
    fn call(
        &self,
        lane: Lane,
        request: &Request,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        self.transport.call(&self.node, lane, request.encode(&self.envelope), timeout)
    }

    async fn ask(&self, request: Request, option: &RPCOption) -> Result<Reply, CallError> {
        reply(self.call(Lane::Control, &request, option.soft_ttl()).await)
    }

    async fn ask_vote(&self, request: Request, option: &RPCOption) -> Result<VoteReply, CallError> {
        match self.ask(request, option).await? {
            Reply::Vote(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendReply, CallError> {
        let request = Request::Append(request);
        append_reply(self.call(self.lane, &request, option.soft_ttl()).await)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, CallError>>, CallError>,
    >
    where
        S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
    {
        let timeout = match self.lane {
            Lane::Entries => self.append_timeout,
            // openraft gives up a sign of life by itself then.
            Lane::Control | Lane::Callers => option.hard_ttl(),
        };
        let requests: BoxStream<'static, _> = match self.lane {
            Lane::Entries => hold_back(input, Arc::clone(&self.commit_wanted)).boxed(),
            Lane::Control | Lane::Callers => input.boxed(),
        };
        let replies = requests
            .map(move |request| {
                let previous = request.prev_log_id;
                let last = request.entries.last().map(|entry| entry.log_id).or(previous);
                let silent = self.silent.load(Ordering::Acquire);
                let reply = if silent {
                    let why = "this leader is silent until a quorum answers it".to_owned();
                    Box::pin(std::future::ready(Err(Failure::Unreachable(why))))
                } else {
                    self.call(self.lane, &Request::Append(request), timeout)
                };
                async move {
                    append_reply(reply.await).map(|reply| stream_result(reply, previous, last))
                }
            })
            .buffered(WINDOW)
            // The first failure ends the stream: what was sent behind it says nothing.
            .scan(false, |failed, reply| {
                let next = (!*failed).then_some(reply);
                *failed = !matches!(next, Some(Ok(Ok(_))));
                std::future::ready(next)
            });
        let replies: BoxStream<'s, _> = Box::pin(replies);
        Box::pin(std::future::ready(Ok(replies)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteReply, CallError> {
        self.ask_vote(Request::Vote(request), &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteReply, CallError> {
        self.ask_vote(Request::PreVote(request), &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let directory = self.outbox.join(format!("{}-{}", self.envelope.group.0, self.envelope.to));
        let failed = |error: &dyn std::fmt::Display| {
            Unreachable::<TypeConfig>::from_string(format!("the snapshot was not sent: {error}"))
        };
        blocking(|| {
            remove_files(&*self.fs, &directory)?;
            snapshot.snapshot.checkpoint(&directory).map_err(std::io::Error::other)
        })
        .map_err(|error| failed(&error))?;
        let header = Request::Snapshot(vote).encode(&self.envelope);
        let sending = self.transport.send_files(&self.node, header, directory.clone());
        let sent = tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sending => match reply(sent) {
                Ok(Reply::Installed(vote)) => Ok(SnapshotResponse::new(vote)),
                Ok(other) => Err(failed(&format!("{other:?}")).into()),
                Err(error) => Err(failed(&error).into()),
            },
        };
        // What is left is removed before the next one is made.
        let _ = blocking(|| remove_files(&*self.fs, &directory));
        sent
    }

    async fn transfer_leader(
        &mut self,
        request: TransferRequest,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, CallError> {
        let expected = request.last_log_id().copied();
        match self.ask(Request::Transfer(request), &option).await? {
            Reply::Transferred(true) => Ok(Ok(())),
            Reply::Transferred(false) => {
                Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual: None }))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// What a reply says to openraft. Every failure is "unreachable", after which it waits a little before it tries again.
fn reply(reply: Result<Bytes, Failure>) -> Result<Reply, CallError> {
    let bytes = reply.map_err(|failure| unreachable(&failure))?;
    let reply = Reply::decode(&bytes).ok_or_else(|| {
        NetworkError::from_string("a reply of no version that this program reads")
    })?;
    match reply {
        Reply::Refused(Refusal::NotHere(why) | Refusal::Failed(why)) => Err(unreachable(&why)),
        other => Ok(other),
    }
}

fn append_reply(result: Result<Bytes, Failure>) -> Result<AppendReply, CallError> {
    if planted::is(Bug::CommitAlone) && result.is_err() {
        return Ok(AppendReply::Success);
    }
    match reply(result)? {
        Reply::Append(reply) => Ok(reply),
        other => Err(unexpected(&other)),
    }
}

fn unreachable(why: &dyn std::fmt::Display) -> CallError {
    Unreachable::from_string(why.to_string()).into()
}

fn unexpected(reply: &Reply) -> CallError {
    unreachable(&format!("unexpected reply {reply:?}"))
}

/// A reply as a stream of appends has it.
fn stream_result(
    reply: AppendReply,
    previous: Option<LogId>,
    last: Option<LogId>,
) -> StreamAppendResult<TypeConfig> {
    match reply {
        AppendReply::Success => Ok(last),
        AppendReply::PartialSuccess(upto) => Ok(upto),
        AppendReply::Conflict => match previous {
            Some(previous) => Err(StreamAppendError::Conflict(previous)),
            // Nothing conflicts with the beginning; a peer that says so is told again from there.
            None => Ok(None),
        },
        AppendReply::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
    }
}
