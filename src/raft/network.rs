//! What openraft sends through: turns its calls into messages to one replica, and their replies back. Knows no sockets; the [`Transport`] does.
//!
//! Appends are pipelined: up to [`WINDOW`] requests wait for their replies, which come back in the order of the requests. Before the first one of a stream, if it is
//! large, the replica is asked whether it has what comes before: while openraft seeks where the logs part, most of what it would send is sent in vain.

use std::collections::BTreeMap;
use std::future::{Future, ready};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, stream};
use openraft::RaftNetworkFactory;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkV2};
use openraft::raft::{
    SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderResponse,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use uuid::Uuid;

use super::blocking::blocking;
use super::commits::hold_back;
use super::encoding::entry_bytes;
use super::files::remove_files;
use super::message::{Envelope, Refusal, Reply, Request};
use super::planted::{self, Bug};
use super::progress::{Copied, Progress};
use super::state::SnapshotData;
use super::transport::{Failure, Lane, Transport};
use super::types::{
    AppendReply, AppendRequest, GroupId, LogId, NodeName, ReplicaId, Snapshot, TransferRequest,
    TypeConfig, Vote, VoteReply, VoteRequest,
};
use crate::util::fs::FileSystem;

/// Most append requests to one replica whose reply has not come. Their bytes are bounded by the transport.
const WINDOW: usize = 16;

/// Bytes of the entries of a first request from which on the replica is asked first.
const ASK_FIRST_BYTES: usize = 64 << 10;

type CallError = RPCError<TypeConfig>;
type AppendAnswer = Result<StreamAppendResult<TypeConfig>, CallError>;

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
    /// Snapshots that are sent now.
    pub(super) copies: Arc<Copies>,
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
            copies: Arc::clone(&self.copies),
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
    copies: Arc<Copies>,
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

    /// Sends now; the future waits for what comes of it.
    fn append(
        &self,
        request: AppendRequest,
        timeout: Duration,
    ) -> impl Future<Output = AppendAnswer> + Send + use<> {
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(previous);
        let silent = self.silent.load(Ordering::Acquire);
        let reply = if silent {
            let why = "this leader is silent until a quorum answers it".to_owned();
            Box::pin(ready(Err(Failure::Unreachable(why))))
        } else {
            self.call(self.lane, &Request::Append(request), timeout)
        };
        async move { append_reply(reply.await).map(|reply| stream_result(reply, previous, last)) }
    }

    /// What comes of `requests`, in their order.
    fn answers<'s>(
        &'s self,
        mut requests: BoxStream<'static, AppendRequest>,
        timeout: Duration,
    ) -> impl Stream<Item = AppendAnswer> + Send + 's {
        let answers = async move {
            let Some(first) = requests.next().await else { return stream::empty().boxed() };
            let bytes: usize = first.entries.iter().map(entry_bytes).sum();
            if bytes >= ASK_FIRST_BYTES {
                // Nothing is committed by it: what the replica has behind may be other entries.
                let (vote, prev_log_id) = (first.vote, first.prev_log_id);
                let question =
                    AppendRequest { vote, prev_log_id, entries: Vec::new(), leader_commit: None };
                let answer = self.append(question, timeout).await;
                if !matches!(answer, Ok(Ok(_))) {
                    return stream::once(ready(answer)).boxed();
                }
            }
            let requests = stream::once(ready(first)).chain(requests);
            requests.map(move |request| self.append(request, timeout)).buffered(WINDOW).boxed()
        };
        stream::once(answers).flatten()
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
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendAnswer>, CallError>>
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
        let replies = self
            .answers(requests, timeout)
            // The first failure ends the stream: what was sent behind it says nothing.
            .scan(false, |failed, reply| {
                let next = (!*failed).then_some(reply);
                *failed = !matches!(next, Some(Ok(Ok(_))));
                ready(next)
            });
        let replies: BoxStream<'s, _> = Box::pin(replies);
        Box::pin(ready(Ok(replies)))
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
        let copy = Copying::begin(&self.copies, self.envelope.to);
        let progress = Arc::clone(&copy.progress);
        let sending = self.transport.send_files(&self.node, header, directory.clone(), progress);
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

/// Snapshots on their way to replicas.
#[derive(Debug, Default)]
pub(super) struct Copies(Mutex<BTreeMap<ReplicaId, Arc<Progress>>>);

impl Copies {
    /// How far each is.
    pub(super) fn copied(&self) -> BTreeMap<ReplicaId, Copied> {
        let copies = self.0.lock();
        copies.iter().filter_map(|(id, copy)| Some((*id, copy.copied()?))).collect()
    }
}

/// A snapshot on its way, among the others until this is dropped.
struct Copying<'a> {
    copies: &'a Copies,
    to: ReplicaId,
    progress: Arc<Progress>,
}

impl<'a> Copying<'a> {
    fn begin(copies: &'a Copies, to: ReplicaId) -> Self {
        let progress = Arc::<Progress>::default();
        copies.0.lock().insert(to, Arc::clone(&progress));
        Self { copies, to, progress }
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        let mut copies = self.copies.0.lock();
        // A later one may have taken its place.
        if copies.get(&self.to).is_some_and(|copy| Arc::ptr_eq(copy, &self.progress)) {
            copies.remove(&self.to);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::log::tests::entry;
    use crate::util::fs::RealFileSystem;

    /// Replies alike to all, and keeps what was sent.
    struct Replies {
        with: AppendReply,
        sent: Mutex<Vec<AppendRequest>>,
    }

    impl Transport for Replies {
        fn call(
            &self,
            _: &NodeName,
            _: Lane,
            message: Bytes,
            _: Duration,
        ) -> BoxFuture<'static, Result<Bytes, Failure>> {
            let (_, request) = Request::decode(&message).expect("a request");
            let Request::Append(request) = request else { panic!("only appends are sent") };
            self.sent.lock().push(request);
            Box::pin(ready(Ok(Reply::Append(self.with.clone()).encode())))
        }

        fn send_files(
            &self,
            _: &NodeName,
            _: Bytes,
            _: PathBuf,
            _: Arc<Progress>,
        ) -> BoxFuture<'static, Result<Bytes, Failure>> {
            panic!("no files are sent")
        }
    }

    /// The request with the entry `index`, of so many bytes.
    fn request(index: u64, bytes: usize) -> AppendRequest {
        AppendRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(entry(1, index - 1, 0).log_id),
            entries: vec![entry(1, index, bytes)],
            leader_commit: Some(entry(1, index, 0).log_id),
        }
    }

    /// What is sent of `requests`, as the entry before and the number of entries, and how many answers come of it.
    async fn sent(with: AppendReply, requests: Vec<AppendRequest>) -> (Vec<(u64, usize)>, usize) {
        let replies = Arc::new(Replies { with, sent: Mutex::default() });
        let network = Network {
            cluster: Uuid::nil(),
            group: GroupId(0),
            replica: 1,
            transport: Arc::clone(&replies) as Arc<dyn Transport>,
            append_timeout: Duration::from_secs(1),
            silent: Arc::default(),
            copies: Arc::default(),
            commit_wanted: Arc::default(),
            outbox: PathBuf::new(),
            fs: Arc::new(RealFileSystem),
        };
        let mut peer = network.client(2, &NodeName("n2".to_owned()), Lane::Entries);
        let option = RPCOption::new(Duration::from_secs(1));
        let answers = peer.stream_append(stream::iter(requests), option).await.expect("it begins");
        let answers = answers.count().await;
        let sent = replies.sent.lock();
        let before = |request: &AppendRequest| request.prev_log_id.expect("there is one").index;
        let sent = sent.iter().map(|request| (before(request), request.entries.len())).collect();
        (sent, answers)
    }

    #[tokio::test]
    async fn what_is_large_is_sent_only_to_a_replica_that_has_what_comes_before() {
        let large = || vec![request(5, ASK_FIRST_BYTES), request(6, ASK_FIRST_BYTES)];
        let (asked, answers) = sent(AppendReply::Conflict, large()).await;
        assert_eq!((asked, answers), (vec![(4, 0)], 1));
        let (asked, answers) = sent(AppendReply::Success, large()).await;
        assert_eq!((asked, answers), (vec![(4, 0), (4, 1), (5, 1)], 2));
    }

    #[tokio::test]
    async fn what_is_small_is_sent_at_once() {
        let requests = vec![request(5, 100), request(6, ASK_FIRST_BYTES)];
        let (asked, answers) = sent(AppendReply::Success, requests).await;
        assert_eq!((asked, answers), (vec![(4, 1), (5, 1)], 2));
    }
}
