//! Nodes over real loopback sockets, each with a runtime of its own that ends as a killed process does.

mod exchange;
mod files;
mod form;
mod handshake;
mod join;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;
use crate::cluster::{Formed, Incarnation, NodeName, Standing};
use crate::net::Endpoint;
use crate::raft::transport::{Failure, Lane, Receiver, Transport as _};
use crate::util::fs::{FileSystem, RealFileSystem};

/// Longer than anything takes here, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// Number of shards of the test clusters.
const SHARDS: u32 = 4;

/// What a node is made of.
#[derive(Clone)]
struct Setup {
    name: &'static str,
    incarnation: u128,
    secret: &'static str,
    shards: u32,
    standing: Standing,
    connection_age: Option<Duration>,
}

fn name(name: &str) -> NodeName {
    NodeName::from(name)
}

fn incarnation(number: u128) -> Incarnation {
    Incarnation(Uuid::from_u128(number))
}

fn names(list: &[&str]) -> BTreeSet<NodeName> {
    list.iter().map(|one| name(one)).collect()
}

/// A formed cluster of members with their incarnations.
fn formed(members: &[(&str, u128)]) -> Formed {
    let members = members.iter().map(|(one, number)| (name(one), incarnation(*number)));
    Formed::new(members.collect(), SHARDS)
}

/// The cluster of n1, n2 and n3 with incarnations 1, 2 and 3.
fn three() -> Formed {
    formed(&[("n1", 1), ("n2", 2), ("n3", 3)])
}

/// Ports that are free, for nodes that are not there yet.
fn ports(count: usize) -> Vec<SocketAddr> {
    let bound: Vec<_> =
        (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    bound.iter().map(|one| one.local_addr().expect("it is bound")).collect()
}

fn fs() -> Arc<dyn FileSystem> {
    Arc::new(RealFileSystem)
}

/// A member of [`three`].
fn member(name: &'static str, incarnation: u128) -> Setup {
    let standing = Standing::Formed(three());
    Setup { name, incarnation, secret: "s3cret", shards: SHARDS, standing, connection_age: None }
}

/// A node that is served.
struct Node {
    runtime: Option<Runtime>,
    local: Arc<Local>,
    service: PeerService,
    transport: GrpcTransport,
    endpoint: Endpoint,
    stopping: CancellationToken,
}

/// Opens `address`; its port may be taken for a moment by somebody who connects.
fn bind(address: SocketAddr) -> std::net::TcpListener {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) if std::time::Instant::now() > until => panic!("{address}: {error}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

impl Node {
    /// Starts a node on a port that is free.
    fn start(setup: Setup, receiver: &Arc<Double>) -> Self {
        let node = Self::start_at(setup, ([127, 0, 0, 1], 0).into());
        node.service.receive_with(Arc::clone(receiver) as Arc<dyn Receiver>);
        node
    }

    /// Starts a node on `address` that takes no messages yet.
    fn start_at(setup: Setup, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let inside = runtime.enter();
        let listener = bind(address);
        listener.set_nonblocking(true).expect("a socket");
        let endpoint = listener.local_addr().expect("it is bound").to_string();
        let who = Who {
            node: name(setup.name),
            incarnation: incarnation(setup.incarnation),
            shards: setup.shards,
        };
        let secret = Secret::new(setup.secret);
        let local = Local::new(who, secret, setup.standing, BTreeMap::new());
        let stopping = CancellationToken::new();
        let service =
            PeerService::new(Arc::clone(&local), fs(), setup.connection_age, stopping.clone());
        let incoming = TcpListenerStream::new(TcpListener::from_std(listener).expect("a listener"));
        let serving = tonic::transport::Server::builder()
            .add_service(service.clone().into_server())
            .serve_with_incoming_shutdown(incoming, stopping.clone().cancelled_owned());
        runtime.spawn(serving);
        let transport = GrpcTransport::new(Arc::clone(&local), fs(), None);
        drop(inside);
        let endpoint = endpoint.parse().expect("an address");
        Self { runtime: Some(runtime), local, service, transport, endpoint, stopping }
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.to_string().parse().expect("a loopback address")
    }

    /// Tells this node where others are.
    fn knows(&self, others: &[&Self]) {
        let others =
            others.iter().map(|other| (other.local.who.node.clone(), other.endpoint.clone()));
        self.local.set_addresses(others.collect());
    }

    /// Ends at once: sockets are closed, tasks are gone.
    fn kill(mut self) -> SocketAddr {
        let address = self.address();
        let runtime = self.runtime.take().expect("it runs");
        // On a thread that may block, until all of it is gone.
        let ended = std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE));
        ended.join().expect("a runtime ends");
        address
    }

    fn call(
        &self,
        to: &str,
        lane: Lane,
        message: impl Into<Bytes>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        self.transport.call(&name(to), lane, message.into(), timeout)
    }

    /// Calls until there is a reply, as Raft does.
    async fn call_until_replied(&self, to: &str, lane: Lane, message: &'static str) -> Bytes {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.call(to, lane, message, PATIENCE).await {
                Ok(reply) => return reply,
                Err(error) if Instant::now() > until => panic!("no reply: {error}"),
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// Returns when it has refused somebody with a sentence that has `part` in it.
    async fn refuses(&self, part: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.service.refusals().iter().any(|said| said.contains(part)) {
            assert!(Instant::now() < until, "{:?}", self.service.refusals());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Calls until it is refused for something else than a broken connection; what is said then.
    async fn refusal(&self, to: &str) -> String {
        let failure = self.call(to, Lane::Control, "hello", PATIENCE).await;
        match failure.expect_err("it is refused") {
            Failure::Unreachable(why) => why,
            Failure::Lost(why) => panic!("lost: {why}"),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A receiver that answers `re: ` and the message; one that begins with `hold` only when it is let go.
#[derive(Default)]
struct Double {
    /// What came, in order.
    received: Mutex<Vec<Bytes>>,
    count: watch::Sender<usize>,
    /// Whether held messages may go.
    released: watch::Sender<bool>,
    /// Where files go; none are wanted without.
    staging: Mutex<Option<PathBuf>>,
    /// What came as files: the header, and each by name.
    installed: Mutex<Vec<(Bytes, Files)>>,
}

/// Files by name.
type Files = BTreeMap<String, Vec<u8>>;

/// What is in `directory`.
fn read_all(directory: &Path) -> Files {
    let entries = std::fs::read_dir(directory).expect("it is there");
    let read = |path: PathBuf| {
        let name = path.file_name().expect("it has one").to_string_lossy().into_owned();
        (name, std::fs::read(&path).expect("a file"))
    };
    entries.map(|entry| read(entry.expect("an entry").path())).collect()
}

impl Double {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn received(&self) -> Vec<Bytes> {
        self.received.lock().clone()
    }

    /// Returns when `count` messages came.
    async fn came(&self, count: usize) {
        let mut counted = self.count.subscribe();
        let came = counted.wait_for(|now| *now >= count);
        tokio::time::timeout(PATIENCE, came).await.expect("they come").expect("it lives");
    }

    fn release(&self) {
        self.released.send_replace(true);
    }
}

impl Receiver for Double {
    fn receive(&self, from: &NodeName, message: Bytes) -> BoxFuture<'static, Bytes> {
        assert_eq!(from.0, "n1", "only n1 sends here");
        let came = {
            let mut received = self.received.lock();
            received.push(message.clone());
            received.len()
        };
        self.count.send_replace(came);
        let mut released = self.released.subscribe();
        Box::pin(async move {
            if message.starts_with(b"hold") {
                released.wait_for(|now| *now).await.expect("the test lets them go");
            }
            [b"re: ", &message[..message.len().min(100)]].concat().into()
        })
    }

    fn staging(&self, _: &NodeName, _: &Bytes) -> Result<PathBuf, Bytes> {
        self.staging.lock().clone().ok_or_else(|| Bytes::from_static(b"no files are wanted here"))
    }

    fn received_files(
        &self,
        _: &NodeName,
        header: Bytes,
        directory: PathBuf,
    ) -> BoxFuture<'static, Bytes> {
        self.installed.lock().push((header, read_all(&directory)));
        Box::pin(std::future::ready(Bytes::from_static(b"installed")))
    }
}
