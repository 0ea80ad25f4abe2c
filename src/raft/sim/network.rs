//! The simulated network: every message has a delay, may be lost on its way or on the way back, and links can be cut, each direction by itself.
//!
//! Keeps the contract of [`Transport`]: messages of a lane arrive in order, none twice. A message that does not arrive ends as it would in a program:
//! nothing comes until the time is up, or the connection breaks at once; a node that is down refuses, also at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use xxhash_rust::xxh3::Xxh3;

use crate::raft::files::remove_files;
use crate::raft::message::Reply;
use crate::raft::progress::Progress;
use crate::raft::transport::{Failure, Lane, Receiver, Transport};
use crate::raft::types::NodeName;
use crate::util::fs::sim::SimFileSystem;
use crate::util::fs::{FileSystem as _, read_file};

/// Most messages of a lane on their way.
const LANE_MESSAGES_MAX: usize = 4096;

/// Largest file of a snapshot.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A node, by its place in the cluster.
pub(crate) type NodeIndex = usize;

/// How the network is now.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    /// Milliseconds from one node to another.
    pub(crate) delay_ms: RangeInclusive<u64>,
    /// One message in a thousand so often is lost, in each direction.
    pub(crate) lost_of_1000: u32,
}

impl Weather {
    pub(crate) const FINE: Self = Self { delay_ms: 0..=2, lost_of_1000: 0 };
}

/// What happened, for the coverage of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    /// Messages that arrived.
    pub(super) delivered: u64,
    /// Those that did not, or whose reply did not.
    pub(super) lost: u64,
    /// Proposals of another node's callers that were answered.
    pub(super) forwarded: u64,
    /// Snapshots that were taken over.
    pub(super) snapshots: u64,
}

/// Where a node that runs is reached.
#[derive(Clone)]
struct Endpoint {
    receiver: Arc<dyn Receiver>,
    fs: SimFileSystem,
    incarnation: u64,
}

struct State {
    random: StdRng,
    weather: Weather,
    cuts: BTreeSet<(NodeIndex, NodeIndex)>,
    endpoints: BTreeMap<NodeIndex, Endpoint>,
    traffic: Traffic,
    trace: Xxh3,
}

/// See the [module](self).
pub(crate) struct SimNetwork {
    names: Vec<NodeName>,
    start: Instant,
    state: Mutex<State>,
}

/// What becomes of a message.
enum Fate {
    Arrives(Endpoint),
    /// Nothing is heard of it.
    Vanishes,
    /// The sender learns of it.
    Fails(Failure),
}

impl SimNetwork {
    pub(super) fn new(names: Vec<NodeName>, seed: u64) -> Arc<Self> {
        let state = State {
            random: StdRng::seed_from_u64(seed),
            weather: Weather::FINE,
            cuts: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            traffic: Traffic::default(),
            trace: Xxh3::new(),
        };
        Arc::new(Self { names, start: Instant::now(), state: Mutex::new(state) })
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    /// Nothing gets from `from` to `to` any more.
    pub(crate) fn cut(&self, from: NodeIndex, to: NodeIndex) {
        self.state.lock().cuts.insert((from, to));
    }

    /// Nothing gets from `node` to any other or back.
    pub(crate) fn isolate(&self, node: NodeIndex) {
        for other in (0..self.names.len()).filter(|other| *other != node) {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    /// All links work again.
    pub(crate) fn heal(&self) {
        self.state.lock().cuts.clear();
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.state.lock().traffic
    }

    /// A hash of what was sent, by whom, to whom and when.
    pub(super) fn trace_hash(&self) -> u64 {
        self.state.lock().trace.digest()
    }

    fn trace(&self, from: NodeIndex, to: NodeIndex, arrives: Instant, message: &[u8]) {
        let mut state = self.state.lock();
        let after = arrives.duration_since(self.start).as_millis();
        state.trace.update(format!("{from} {to} {after} ").as_bytes());
        state.trace.update(message);
    }

    /// The node is up.
    pub(super) fn connect(
        &self,
        node: NodeIndex,
        receiver: Arc<dyn Receiver>,
        fs: SimFileSystem,
        incarnation: u64,
    ) {
        self.state.lock().endpoints.insert(node, Endpoint { receiver, fs, incarnation });
    }

    /// The node is down.
    pub(super) fn disconnect(&self, node: NodeIndex) {
        self.state.lock().endpoints.remove(&node);
    }

    fn delay(&self) -> Duration {
        let mut state = self.state.lock();
        let range = state.weather.delay_ms.clone();
        Duration::from_millis(state.random.random_range(range))
    }

    fn index(&self, name: &NodeName) -> NodeIndex {
        self.names.iter().position(|known| known == name).expect("a node of the cluster")
    }

    /// What becomes of a message at the moment when it should arrive.
    fn fate(&self, from: NodeIndex, to: NodeIndex) -> Fate {
        let mut state = self.state.lock();
        let lost = state.weather.lost_of_1000;
        let lost = state.cuts.contains(&(from, to)) || state.random.random_ratio(lost, 1000);
        if lost {
            state.traffic.lost += 1;
            return match state.random.random_range(0..4) {
                0 => Fate::Fails(Failure::Lost("the connection broke".to_owned())),
                1 => Fate::Fails(Failure::Unreachable("no way there".to_owned())),
                _ => Fate::Vanishes,
            };
        }
        match state.endpoints.get(&to).cloned() {
            Some(endpoint) => {
                state.traffic.delivered += 1;
                Fate::Arrives(endpoint)
            }
            None => Fate::Fails(Failure::Unreachable("connection refused".to_owned())),
        }
    }

    /// Whether the reply that `from` gave in this incarnation reaches `to`; `Err`: the sender learns that it does not.
    fn reply_fate(
        &self,
        from: NodeIndex,
        to: NodeIndex,
        incarnation: u64,
    ) -> Result<bool, Failure> {
        let mut state = self.state.lock();
        let broke = || Err(Failure::Lost("the connection broke".to_owned()));
        if state.endpoints.get(&from).is_none_or(|now| now.incarnation != incarnation) {
            return broke();
        }
        let lost = state.weather.lost_of_1000;
        if state.cuts.contains(&(from, to)) || state.random.random_ratio(lost, 1000) {
            state.traffic.lost += 1;
            return if state.random.random_ratio(1, 3) { broke() } else { Ok(false) };
        }
        Ok(true)
    }
}

/// A message on its way.
struct Parcel {
    at: Instant,
    message: Bytes,
    answer: oneshot::Sender<Result<Bytes, Failure>>,
}

/// What one incarnation of a node sends through.
pub(super) struct SimTransport {
    network: Arc<SimNetwork>,
    own: NodeIndex,
    fs: SimFileSystem,
    lanes: Mutex<BTreeMap<(NodeIndex, u8), Way>>,
    alive: AtomicBool,
}

/// One lane to one node.
struct Way {
    parcels: mpsc::Sender<Parcel>,
    /// When the last message arrives.
    last: Instant,
}

impl SimTransport {
    pub(super) fn new(network: &Arc<SimNetwork>, own: NodeIndex, fs: SimFileSystem) -> Arc<Self> {
        Arc::new(Self {
            network: Arc::clone(network),
            own,
            fs,
            lanes: Mutex::default(),
            alive: AtomicBool::new(true),
        })
    }

    /// The node crashed: it sends no more.
    pub(super) fn kill(&self) {
        self.alive.store(false, Ordering::SeqCst);
        self.lanes.lock().clear();
    }

    fn check_alive(&self) -> Result<(), Failure> {
        let dead = || Failure::Unreachable("this node is down".to_owned());
        self.alive.load(Ordering::SeqCst).then_some(()).ok_or_else(dead)
    }

    fn post(
        &self,
        to: NodeIndex,
        lane: Lane,
        message: Bytes,
        answer: oneshot::Sender<Result<Bytes, Failure>>,
    ) -> Result<(), Failure> {
        self.check_alive()?;
        let arrives = Instant::now() + self.network.delay();
        let mut lanes = self.lanes.lock();
        let way = lanes.entry((to, lane as u8)).or_insert_with(|| {
            let (parcels, waiting) = mpsc::channel(LANE_MESSAGES_MAX);
            let network = Arc::clone(&self.network);
            tokio::spawn(deliver_all(network, self.own, to, lane, waiting));
            Way { parcels, last: arrives }
        });
        way.last = way.last.max(arrives);
        self.network.trace(self.own, to, way.last, &message);
        let parcel = Parcel { at: way.last, message, answer };
        let full = |_| Failure::Unreachable("too many messages are on their way".to_owned());
        way.parcels.try_send(parcel).map_err(full)
    }
}

/// Brings the messages of a lane to their node, in order.
async fn deliver_all(
    network: Arc<SimNetwork>,
    from: NodeIndex,
    to: NodeIndex,
    lane: Lane,
    mut waiting: mpsc::Receiver<Parcel>,
) {
    while let Some(Parcel { at, message, answer }) = waiting.recv().await {
        sleep_until(at).await;
        let endpoint = match network.fate(from, to) {
            Fate::Arrives(endpoint) => endpoint,
            Fate::Vanishes => continue,
            Fate::Fails(failure) => {
                // Whoever has left needs no answer, here and below.
                let _ = answer.send(Err(failure));
                continue;
            }
        };
        let mut work = endpoint.receiver.receive(&network.names[from], message);
        drop(endpoint.receiver);
        // Polled before the next message is handed over: its place in the order is taken.
        let first = futures::poll!(&mut work);
        let (network, incarnation) = (Arc::clone(&network), endpoint.incarnation);
        tokio::spawn(async move {
            let reply = match first {
                std::task::Poll::Ready(reply) => reply,
                std::task::Poll::Pending => work.await,
            };
            sleep(network.delay()).await;
            network.trace(to, from, Instant::now(), &reply);
            match network.reply_fate(to, from, incarnation) {
                Ok(true) => {
                    if lane == Lane::Callers
                        && matches!(Reply::decode(&reply), Some(Reply::Applied(_)))
                    {
                        network.state.lock().traffic.forwarded += 1;
                    }
                    let _ = answer.send(Ok(reply));
                }
                Ok(false) => {}
                Err(failure) => _ = answer.send(Err(failure)),
            }
        });
    }
}

impl Transport for SimTransport {
    fn call(
        &self,
        node: &NodeName,
        lane: Lane,
        message: Bytes,
        limit: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let deadline = Instant::now() + limit;
        let (answer, answered) = oneshot::channel();
        let posted = self.post(self.network.index(node), lane, message, answer);
        Box::pin(async move {
            posted?;
            let late = || Failure::Lost("no reply in time".to_owned());
            match timeout(limit, answered).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(_)) => {
                    // It vanished, which nobody knows before the time is up.
                    sleep_until(deadline).await;
                    Err(late())
                }
                Err(_) => Err(late()),
            }
        })
    }

    fn send_files(
        &self,
        node: &NodeName,
        header: Bytes,
        directory: PathBuf,
        _: Arc<Progress>,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let network = Arc::clone(&self.network);
        let (own, to, fs) = (self.own, self.network.index(node), self.fs.clone());
        let alive = self.check_alive();
        Box::pin(async move {
            alive?;
            network.send_files(own, to, &fs, header, &directory).await
        })
    }
}

impl SimNetwork {
    async fn send_files(
        &self,
        from: NodeIndex,
        to: NodeIndex,
        fs: &SimFileSystem,
        header: Bytes,
        directory: &Path,
    ) -> Result<Bytes, Failure> {
        let lost = |error: &dyn std::fmt::Display| Failure::Lost(error.to_string());
        let endpoint = self.pass(from, to).await?;
        let incarnation = endpoint.incarnation;
        let staging = match endpoint.receiver.staging(&self.names[from], &header) {
            Ok(staging) => staging,
            Err(refused) => return Ok(refused),
        };
        remove_files(&endpoint.fs, &staging).map_err(|error| lost(&error))?;
        endpoint.fs.create_dir_all(&staging).map_err(|error| lost(&error))?;
        drop(endpoint);
        let names = fs.list(directory).map_err(|error| lost(&error))?;
        for name in &names {
            let bytes = read_file(fs, &directory.join(name), FILE_BYTES_MAX);
            let bytes = bytes.map_err(|error| lost(&error))?;
            self.trace(from, to, Instant::now(), &bytes);
            let endpoint = self.pass(from, to).await?;
            if endpoint.incarnation != incarnation {
                return Err(Failure::Lost("the other node has restarted".to_owned()));
            }
            let put = || {
                let file = endpoint.fs.create(&staging.join(name))?;
                file.write_at(&bytes, 0)?;
                file.sync_data()
            };
            put().map_err(|error| lost(&error))?;
        }
        let endpoint = self.pass(from, to).await?;
        let complete = || {
            endpoint.fs.sync_dir(&staging)?;
            endpoint.fs.list(&staging)
        };
        if endpoint.incarnation != incarnation || complete().map_err(|error| lost(&error))? != names
        {
            return Err(Failure::Lost("the files are gone".to_owned()));
        }
        let received = endpoint.receiver.received_files(&self.names[from], header, staging);
        drop(endpoint);
        // The other node works on, whether anybody waits for its reply or not.
        let reply = tokio::spawn(received).await.map_err(|error| lost(&error))?;
        sleep(self.delay()).await;
        if !self.reply_fate(to, from, incarnation)? {
            return Err(Failure::Lost("no reply".to_owned()));
        }
        if matches!(Reply::decode(&reply), Some(Reply::Installed(_))) {
            self.state.lock().traffic.snapshots += 1;
        }
        Ok(reply)
    }

    /// One more step of a transfer.
    async fn pass(&self, from: NodeIndex, to: NodeIndex) -> Result<Endpoint, Failure> {
        sleep(self.delay()).await;
        match self.fate(from, to) {
            Fate::Arrives(endpoint) => Ok(endpoint),
            Fate::Fails(failure) => Err(failure),
            Fate::Vanishes => Err(Failure::Lost("nothing is heard of it".to_owned())),
        }
    }
}
