//! The service for peers: handshakes, and the streams and calls that they allow.
//!
//! It is on the gRPC port beside the public API, and served from the moment the port is open: nodes have to meet before their cluster is formed. Streams
//! are refused until [`PeerService::receive_with`], nodes that join until [`PeerService::admit_with`]. Admission of public calls does not count these: members are few, and what
//! they may have in flight is bounded here.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::codegen::{Body, StdError};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use super::admit::{Admits, candidate};
use super::exchange::Exchange;
use super::files::{Receiving, Transfer};
use super::handshake::{Called, Claim};
use super::local::Local;
use super::refusal::{Reason, Refusal};
use super::sessions::{Session, Sessions};
use super::{HANDSHAKE_BYTES_MAX, MESSAGE_BYTES_MAX, TOKEN_HEADER};
use crate::proto::raft::raft_service_server::{RaftService, RaftServiceServer};
use crate::proto::raft::{
    ExchangeRequest, HandshakeRequest, HandshakeResponse, JoinRequest, JoinResponse, Proof,
    SendFilesRequest, SendFilesResponse, handshake_request, handshake_response,
};
use crate::raft::transport::Receiver;
use crate::util::fs::FileSystem;

/// Most handshakes at a time.
const HANDSHAKES_MAX: usize = 64;

/// Time that a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Most nodes that are being put on the list of members at a time.
const ADMISSIONS_MAX: usize = 8;

/// Time that this may take.
pub(super) const ADMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the same refusal is not logged again.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_mins(1);

/// Most refusals that are remembered for that.
const REFUSALS_MAX: usize = 64;

/// Serves peers. Clones are the same service.
#[derive(Clone)]
pub struct PeerService(Arc<Inner>);

struct Inner {
    local: Arc<Local>,
    receiver: OnceLock<Arc<dyn Receiver>>,
    admits: OnceLock<Arc<dyn Admits>>,
    sessions: Sessions,
    handshakes: Arc<Semaphore>,
    admissions: Semaphore,
    receiving: Arc<Receiving>,
    /// How long callers shall keep a stream.
    stream_age: Option<Duration>,
    stopping: CancellationToken,
    /// Refusals that were logged lately.
    logged: Mutex<HashMap<String, Instant>>,
}

type Steps<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl PeerService {
    /// Serves the peers of `local` until `stopping`; files that they send go to `fs`. `connection_age` is the age at which the port closes connections: streams are made anew
    /// well before, so that nothing is lost by it.
    pub fn new(
        local: Arc<Local>,
        fs: Arc<dyn FileSystem>,
        connection_age: Option<Duration>,
        stopping: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            local,
            receiver: OnceLock::new(),
            admits: OnceLock::new(),
            sessions: Sessions::default(),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            admissions: Semaphore::new(ADMISSIONS_MAX),
            receiving: Receiving::new(fs),
            stream_age: connection_age.map(|age| age / 2),
            stopping,
            logged: Mutex::default(),
        }))
    }

    /// From here on messages are taken, and go to `receiver`. Once.
    pub fn receive_with(&self, receiver: Arc<dyn Receiver>) {
        let first = self.0.receiver.set(receiver).is_ok();
        assert!(first, "a node has one receiver");
    }

    /// From here on `admits` is asked about nodes that want to be members. Once.
    pub fn admit_with(&self, admits: Arc<dyn Admits>) {
        let first = self.0.admits.set(admits).is_ok();
        assert!(first, "a node has one list of members");
    }

    /// As tonic serves it.
    pub fn into_server(self) -> PeerServer {
        let server = |bytes_max| {
            RaftServiceServer::new(self.clone())
                .max_decoding_message_size(bytes_max)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
        PeerServer { calls: server(HANDSHAKE_BYTES_MAX), streams: server(MESSAGE_BYTES_MAX) }
    }

    /// Who sends on a stream, and who takes what comes, if the stream is allowed.
    fn enter(&self, metadata: &MetadataMap) -> Result<(Session, Arc<dyn Receiver>), Refusal> {
        let session = self.0.sessions.open(&token(metadata))?;
        let receiver = self.0.receiver.get().ok_or_else(|| self.0.starts())?;
        session.check(&self.0.local.standing())?;
        Ok((session, Arc::clone(receiver)))
    }
}

/// What the caller shows as its token.
fn token(metadata: &MetadataMap) -> Bytes {
    let token = metadata.get_bin(TOKEN_HEADER).and_then(|token| token.to_bytes().ok());
    token.unwrap_or_default()
}

/// [`PeerService`] with its limits: who has not proven who it is makes this node set no more memory aside than a handshake needs. The request of a call is read before its token
/// is looked at.
#[derive(Clone)]
pub struct PeerServer {
    calls: RaftServiceServer<PeerService>,
    streams: RaftServiceServer<PeerService>,
}

impl NamedService for PeerServer {
    const NAME: &'static str = RaftServiceServer::<PeerService>::NAME;
}

impl<B> Service<http::Request<B>> for PeerServer
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = tonic::codegen::BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        if path.ends_with("/Handshake") || path.ends_with("/Join") {
            self.calls.call(request)
        } else {
            self.streams.call(request)
        }
    }
}

impl Inner {
    /// Ends when `session` is to be served no longer.
    fn over(self: &Arc<Self>, session: Session) -> BoxFuture<'static, Refusal> {
        let this = Arc::clone(self);
        Box::pin(async move {
            let mut standing = this.local.watch_standing();
            tokio::select! {
                () = this.stopping.cancelled() => this.stops(),
                Ok(now) = standing.wait_for(|now| session.check(now).is_err()) => {
                    session.check(&now).expect_err("that was waited for")
                }
            }
        })
    }

    /// Puts the node of `session` on the list of members.
    async fn admit(&self, session: Session, request: JoinRequest) -> Result<JoinResponse, Refusal> {
        let Ok(_permit) = self.admissions.try_acquire() else {
            let message = format!("{ADMISSIONS_MAX} nodes are joining at the moment");
            return Err(Refusal::new(Reason::Busy, message));
        };
        let admits = self.admits.get().ok_or_else(|| self.starts())?;
        let candidate = candidate(session, &self.local.standing(), request)?;
        let late = Refusal::new(
            Reason::NotReady,
            format!(
                "within {ADMIT_TIMEOUT:?} the cluster did not decide about node {}",
                candidate.node
            ),
        );
        tokio::select! {
            () = self.stopping.cancelled() => Err(self.stops()),
            admitted = timeout(ADMIT_TIMEOUT, admits.admit(candidate)) => {
                Ok(admitted.map_err(|_| late)??.into_response())
            }
        }
    }

    fn starts(&self) -> Refusal {
        Refusal::new(Reason::NotReady, format!("node {} is starting", self.local.who.node))
    }

    fn stops(&self) -> Refusal {
        Refusal::new(Reason::NotReady, format!("node {} is stopping", self.local.who.node))
    }

    /// Logs a refusal, unless that was done lately: who is refused comes again.
    fn log(&self, refusal: &Refusal) {
        let now = Instant::now();
        let mut logged = self.logged.lock();
        logged.retain(|_, at| now - *at < REFUSAL_LOG_INTERVAL);
        if logged.len() >= REFUSALS_MAX || logged.insert(refusal.message.clone(), now).is_some() {
            return;
        }
        if matches!(refusal.reason, Reason::NotReady | Reason::Busy) {
            tracing::debug!("refused a node: {refusal}");
        } else {
            tracing::warn!("refused a node: {refusal}");
        }
    }
}

/// One handshake, between its steps.
struct Handshake {
    service: Arc<Inner>,
    steps: Streaming<HandshakeRequest>,
    called: Option<Called>,
    deadline: Instant,
    over: bool,
    _permit: OwnedSemaphorePermit,
}

impl Handshake {
    /// The answer to the caller's next step.
    async fn step(&mut self) -> Result<handshake_response::Step, Refusal> {
        let late =
            |_| Refusal::new(Reason::Busy, format!("no handshake within {HANDSHAKE_TIMEOUT:?}"));
        let step = timeout_at(self.deadline, self.steps.message()).await.map_err(late)?;
        let step = step.ok().flatten().and_then(|request| request.step);
        match (step, self.called.take()) {
            (Some(handshake_request::Step::Hello(hello)), None) => {
                let called = Called::new(hello)?;
                let challenge = called.challenge();
                self.called = Some(called);
                Ok(handshake_response::Step::Challenge(challenge))
            }
            (Some(handshake_request::Step::Proof(proof)), Some(called)) => {
                self.over = true;
                self.welcome(&called, &proof)
            }
            _ => Err(Refusal::malformed("the handshake")),
        }
    }

    fn welcome(&self, called: &Called, proof: &Proof) -> Result<handshake_response::Step, Refusal> {
        let service = &self.service;
        let (local, standing) = (&service.local, service.local.standing());
        called.check(&local.secret, &local.who, &standing, proof)?;
        // Founders take over what they are told of their cluster, and come again as members.
        let token = if called.claim() == Claim::Founder {
            Bytes::new()
        } else {
            service.sessions.begin(Session {
                node: called.node.clone(),
                incarnation: called.incarnation,
                claim: called.claim(),
                addressed: called.is_addressed(),
            })
        };
        let age = service.stream_age;
        let welcome = called.welcome(&local.secret, &local.who, &standing, token, age);
        Ok(handshake_response::Step::Welcome(welcome))
    }
}

#[tonic::async_trait]
impl RaftService for PeerService {
    type HandshakeStream = Steps<HandshakeResponse>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        let Ok(permit) = Arc::clone(&self.0.handshakes).try_acquire_owned() else {
            let message = format!("{HANDSHAKES_MAX} handshakes are going on");
            return Err(Refusal::new(Reason::Busy, message).into());
        };
        if self.0.stopping.is_cancelled() {
            return Err(self.0.stops().into());
        }
        let handshake = Handshake {
            service: Arc::clone(&self.0),
            steps: request.into_inner(),
            called: None,
            deadline: Instant::now() + HANDSHAKE_TIMEOUT,
            over: false,
            _permit: permit,
        };
        let steps = stream::try_unfold(handshake, |mut handshake| async move {
            if handshake.over {
                return Ok(None);
            }
            match handshake.step().await {
                Ok(step) => Ok(Some((HandshakeResponse { step: Some(step) }, handshake))),
                Err(refusal) => {
                    handshake.service.log(&refusal);
                    Err(Status::from(refusal))
                }
            }
        });
        Ok(Response::new(steps.boxed()))
    }

    type ExchangeStream = Exchange;

    async fn exchange(
        &self,
        request: Request<Streaming<ExchangeRequest>>,
    ) -> Result<Response<Exchange>, Status> {
        let (session, receiver) = self.enter(request.metadata())?;
        let node = session.node.clone();
        let over = self.0.over(session);
        Ok(Response::new(Exchange::new(node, receiver, request.into_inner(), over)))
    }

    type SendFilesStream = Steps<SendFilesResponse>;

    async fn send_files(
        &self,
        request: Request<Streaming<SendFilesRequest>>,
    ) -> Result<Response<Self::SendFilesStream>, Status> {
        let (session, receiver) = self.enter(request.metadata())?;
        let receiving = Arc::clone(&self.0.receiving);
        let node = session.node.clone();
        let transfer = Transfer::new(receiving, node, receiver, request.into_inner());
        let state = (transfer, self.0.over(session));
        let steps = stream::try_unfold(state, |(mut transfer, mut over)| async move {
            let step = tokio::select! {
                step = transfer.step() => step?,
                refusal = &mut over => return Err(Status::from(refusal)),
            };
            let next = |step| (SendFilesResponse { step: Some(step) }, (transfer, over));
            Ok(step.map(next))
        });
        Ok(Response::new(steps.boxed()))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let session = self.0.sessions.admit(&token(request.metadata()))?;
        let answer = self.0.admit(session, request.into_inner()).await;
        Ok(Response::new(answer.inspect_err(|refusal| self.0.log(refusal))?))
    }
}

#[cfg(test)]
impl PeerService {
    /// What it has refused lately.
    pub(super) fn refusals(&self) -> Vec<String> {
        self.0.logged.lock().keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::sync::watch;
    use tokio::task::JoinHandle;
    use uuid::Uuid;

    use super::*;
    use crate::cluster::{Formed, Incarnation, NodeName, Standing};
    use crate::raft::peers::handshake::MEMBERS_MAX;
    use crate::raft::peers::{Admitted, Candidate, Secret, Who};
    use crate::util::fs::RealFileSystem;

    /// Decides about nobody until it is let go.
    #[derive(Default)]
    struct Slow {
        asked: watch::Sender<usize>,
        go: watch::Sender<bool>,
    }

    impl Slow {
        /// Returns when `count` nodes wait.
        async fn came(&self, count: usize) {
            self.asked.subscribe().wait_for(|now| *now >= count).await.expect("it lives");
        }
    }

    impl Admits for Slow {
        fn admit(&self, candidate: Candidate) -> BoxFuture<'static, Result<Admitted, Refusal>> {
            self.asked.send_modify(|asked| *asked += 1);
            let mut go = self.go.subscribe();
            Box::pin(async move {
                go.wait_for(|now| *now).await.expect("the test lets it go");
                let members = [(candidate.node, (candidate.incarnation, candidate.address))].into();
                Ok(Admitted { revision: 1, members, meta_replica: 7 })
            })
        }
    }

    fn incarnation(number: u128) -> Incarnation {
        Incarnation(Uuid::from_u128(number))
    }

    /// The service of node m0 in a cluster of `members`.
    fn service(members: u128) -> PeerService {
        let who = Who { node: "m0".into(), incarnation: incarnation(0), shards: 4 };
        let members = (0..members).map(|it| (NodeName(format!("m{it}")), incarnation(it)));
        let standing = Standing::Formed(Formed::new(members.collect(), 4));
        let local = Local::new(who, Secret::new(""), standing, BTreeMap::new());
        PeerService::new(local, Arc::new(RealFileSystem), None, CancellationToken::new())
    }

    fn joins(node: &str, number: u128) -> Session {
        Session {
            node: node.into(),
            incarnation: incarnation(number),
            claim: Claim::Candidate,
            addressed: false,
        }
    }

    fn request() -> JoinRequest {
        JoinRequest { address: "10.0.0.9:9090".to_owned(), weight: 100, zone: String::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_nodes_join_at_a_time_and_none_waits_for_ever() {
        let (service, slow) = (service(3), Arc::new(Slow::default()));
        let admit = || {
            let inner = Arc::clone(&service.0);
            tokio::spawn(async move { inner.admit(joins("n9", 9), request()).await })
        };
        let refusal = async |task: JoinHandle<Result<JoinResponse, Refusal>>| {
            let refusal = task.await.expect("it lives").expect_err("nobody decides");
            (refusal.reason, refusal.message)
        };
        let starting = (Reason::NotReady, "node m0 is starting".to_owned());
        assert_eq!(refusal(admit()).await, starting);
        service.admit_with(Arc::clone(&slow) as Arc<dyn Admits>);
        let waiting: Vec<_> = (0..ADMISSIONS_MAX).map(|_| admit()).collect();
        slow.came(ADMISSIONS_MAX).await;
        let busy = (Reason::Busy, "8 nodes are joining at the moment".to_owned());
        assert_eq!(refusal(admit()).await, busy);
        let began = Instant::now();
        for task in waiting {
            let late = "within 5s the cluster did not decide about node n9".to_owned();
            assert_eq!(refusal(task).await, (Reason::NotReady, late));
        }
        assert_eq!(began.elapsed(), ADMIT_TIMEOUT);

        let waiting = admit();
        slow.came(ADMISSIONS_MAX + 1).await;
        slow.go.send_replace(true);
        let joined = waiting.await.expect("it lives").expect("it was let go");
        assert_eq!((joined.members.len(), joined.meta_replica), (1, 7));
        slow.go.send_replace(false);
        let waiting = admit();
        slow.came(ADMISSIONS_MAX + 2).await;
        service.0.stopping.cancel();
        let stopping = (Reason::NotReady, "node m0 is stopping".to_owned());
        assert_eq!(refusal(waiting).await, stopping);
    }

    #[tokio::test]
    async fn what_a_node_says_of_itself_is_checked() {
        let (service, slow) = (service(3), Arc::new(Slow::default()));
        service.admit_with(Arc::clone(&slow) as Arc<dyn Admits>);
        let long = format!("{}:9090", "n".repeat(255));
        let zone = "1 to 64 characters of A-Z a-z 0-9 . _ -";
        for (change, why) in [
            (
                JoinRequest { address: "10.0.0.9".to_owned(), ..request() },
                "its address is \"10.0.0.9\", the port is missing: expected http://HOST:PORT or HOST:PORT; correct kvstore.node.host".to_owned(),
            ),
            (
                JoinRequest { address: long, ..request() },
                "its address has 260 bytes, at most 259 are allowed; correct kvstore.node.host".to_owned(),
            ),
            (
                JoinRequest { weight: 0, ..request() },
                "kvstore.node.weight is 0, 1 to 1000 are allowed".to_owned(),
            ),
            (
                JoinRequest { weight: 1_001, ..request() },
                "kvstore.node.weight is 1001, 1 to 1000 are allowed".to_owned(),
            ),
            (
                JoinRequest { weight: 65_537, ..request() },
                "kvstore.node.weight is 65537, 1 to 1000 are allowed".to_owned(),
            ),
            (
                JoinRequest { zone: "z".repeat(65), ..request() },
                format!("kvstore.node.zone is {:?}; a zone has {zone}", "z".repeat(64)),
            ),
            (
                JoinRequest { zone: "rack 7".to_owned(), ..request() },
                format!("kvstore.node.zone is \"rack 7\"; a zone has {zone}"),
            ),
        ] {
            let refused = service.0.admit(joins("n9", 9), change).await;
            let refused = refused.expect_err("it is none");
            assert_eq!(refused.reason, Reason::NotAdmitted);
            assert_eq!(refused.message, format!("node n9 is not taken in: {why}"));
        }
        // Who it is was proven by the handshake; the list may have changed since then.
        let taken = service.0.admit(joins("m2", 9), request()).await.expect_err("taken");
        assert_eq!(taken.reason, Reason::AnotherIncarnation);
        assert_eq!(*slow.asked.borrow(), 0);
    }

    #[tokio::test]
    async fn a_cluster_has_no_more_members_than_a_list_can_name() {
        let (service, slow) = (service(MEMBERS_MAX as u128), Arc::new(Slow::default()));
        service.admit_with(Arc::clone(&slow) as Arc<dyn Admits>);
        slow.go.send_replace(true);
        let full = service.0.admit(joins("n9", 9), request()).await.expect_err("it is full");
        assert_eq!(full.reason, Reason::NotAdmitted);
        service.0.admit(joins("m7", 7), request()).await.expect("it is on the list");
    }
}
