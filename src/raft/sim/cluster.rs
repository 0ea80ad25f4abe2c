//! A simulated cluster: nodes that start, crash and start again on what their disks kept, with clocks that go wrong.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::network::{NodeIndex, SimNetwork, SimTransport};
use crate::cluster::{ClusterState, Newcomer, Settings, Weight};
use crate::error::Result;
use crate::raft::files::remove_files;
use crate::raft::group::{self, Group};
use crate::raft::log::{LogOptions, LogStore};
use crate::raft::node::{Inbound, LogLimits, Node, Origin, Parts};
use crate::raft::place::Place;
use crate::raft::proposals::Budget;
use crate::raft::room::Room;
use crate::raft::types::{GroupId, NodeName, ReplicaId};
use crate::storage::Environment;
use crate::storage::lsm::{LsmEnvironment, LsmOptions};
use crate::types::ShardId;
use crate::util::fs::FileSystem as _;
use crate::util::fs::sim::SimFileSystem;
use crate::util::time::{Clock, Timestamp};
use crate::wal::Background;

/// Most bytes of a log that a new replica gets as entries: of some logs all, of others nothing.
const LOG_SENT_BYTES: u64 = 2 << 10;

/// When simulations begin: late enough to turn clocks back.
const NOON_MS: u64 = 1_000_000_000;

/// How long a replica may have heard of no leader and still answer stale reads.
pub(crate) const STALE_MAX: Duration = Duration::from_secs(5);

/// How a cluster is made.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Nodes that found the cluster.
    pub(crate) founders: usize,
    /// Nodes that may join it.
    pub(crate) spares: usize,
    pub(crate) replication_factor: u32,
    pub(crate) groups: u32,
    pub(crate) election_timeout: Duration,
    pub(crate) heartbeat_interval: Duration,
    /// Entries that stay behind a snapshot.
    pub(crate) log_keep: u64,
    pub(crate) limits: LogLimits,
    /// Bytes of a segment of the log.
    pub(crate) segment_bytes: u32,
    /// Bytes of entries in memory.
    pub(crate) cache_bytes: usize,
    /// Whether engines flush only when they are told to; otherwise every few writes.
    pub(crate) large_memtables: bool,
    /// Whether followers answer linearizable reads.
    pub(crate) follower_reads: bool,
}

impl Shape {
    /// Nodes that there are or may be.
    pub(crate) const fn nodes(&self) -> usize {
        self.founders + self.spares
    }
}

/// How a node stands to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Founder,
    /// It may join.
    Spare,
    /// It was let in, with this replica of the meta group.
    Joined(ReplicaId),
    /// It is or was on its way out, and does not come back.
    Gone,
}

/// A node's clock: virtual time, set wrong by an offset.
pub(crate) struct SimClock {
    start: Instant,
    offset_ms: AtomicI64,
}

impl SimClock {
    pub(crate) fn turn(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let offset = self.offset_ms.load(Ordering::SeqCst);
        Timestamp::from_millis((NOON_MS + elapsed).saturating_add_signed(offset))
    }
}

/// A node's life between two crashes. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Incarnation {
    pub(crate) node: Arc<Node>,
    pub(crate) log: Arc<LogStore>,
    pub(crate) number: u64,
    pub(crate) crashed: CancellationToken,
    pub(crate) fs: SimFileSystem,
    transport: Arc<SimTransport>,
}

impl Incarnation {
    pub(crate) fn place(&self, id: GroupId) -> &Arc<Place> {
        self.node.place(id).expect("all groups have a place on all nodes")
    }

    /// The replica of a group that the node has.
    pub(crate) fn replica(&self, id: GroupId) -> Arc<Group> {
        self.group(id).expect("the node has a replica of it")
    }

    /// The replica of a group, if the node has one.
    pub(crate) fn group(&self, id: GroupId) -> Option<Arc<Group>> {
        self.node.group(id)
    }
}

struct Member {
    standing: Standing,
    fs: SimFileSystem,
    clock: Arc<SimClock>,
    /// Most milliseconds until somebody syncs the log.
    sync_ms_max: Arc<std::sync::atomic::AtomicU64>,
    incarnations: u64,
    running: Option<Incarnation>,
}

/// See the [module](self).
pub(crate) struct Cluster {
    pub(crate) shape: Shape,
    pub(crate) network: Arc<SimNetwork>,
    names: Vec<NodeName>,
    members: Mutex<Vec<Member>>,
    random: Mutex<StdRng>,
    start: Instant,
    /// What ends incarnations that have crashed.
    endings: Mutex<Vec<JoinHandle<()>>>,
}

impl Cluster {
    /// A cluster of which no node runs.
    pub(crate) fn new(shape: Shape, seed: u64) -> Arc<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let names = names(&shape);
        let start = Instant::now();
        let member = |index: usize| Member {
            standing: if index < shape.founders { Standing::Founder } else { Standing::Spare },
            fs: SimFileSystem::new(random.random()),
            clock: Arc::new(SimClock { start, offset_ms: AtomicI64::new(0) }),
            sync_ms_max: Arc::new(3.into()),
            incarnations: 0,
            running: None,
        };
        let members = (0..shape.nodes()).map(member).collect();
        Arc::new(Self {
            network: SimNetwork::new(names.clone(), random.random()),
            shape,
            names,
            members: Mutex::new(members),
            random: Mutex::new(random),
            start,
            endings: Mutex::default(),
        })
    }

    /// Starts the founders, and waits until their cluster is founded.
    pub(crate) async fn start_all(&self) -> Result<()> {
        for node in 0..self.shape.founders {
            self.start(node).await?;
        }
        let begun = Instant::now();
        while self.arrived().is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the cluster is not founded");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The nodes that belong to the cluster, whether they run or not.
    pub(crate) fn present(&self) -> Vec<NodeIndex> {
        self.standing(|standing| matches!(standing, Standing::Founder | Standing::Joined(_)))
    }

    /// The nodes that may join.
    pub(crate) fn spares(&self) -> Vec<NodeIndex> {
        self.standing(|standing| standing == Standing::Spare)
    }

    fn standing(&self, is: impl Fn(Standing) -> bool) -> Vec<NodeIndex> {
        let members = self.members.lock();
        let chosen = members.iter().enumerate().filter(|(_, member)| is(member.standing));
        chosen.map(|(index, _)| index).collect()
    }

    /// A spare was let in with this replica of the meta group.
    pub(crate) fn joined(&self, index: NodeIndex, meta: ReplicaId) {
        self.members.lock()[index].standing = Standing::Joined(meta);
    }

    /// The node does not come back.
    pub(crate) fn gone(&self, index: NodeIndex) {
        self.members.lock()[index].standing = Standing::Gone;
    }

    /// The nodes with a replica of `group`.
    pub(crate) fn holders(&self, group: GroupId) -> Vec<NodeIndex> {
        let present = self.present().into_iter();
        let holds = |node: &NodeIndex| {
            self.running(*node).is_some_and(|running| running.group(group).is_some())
        };
        present.filter(holds).collect()
    }

    /// Some node's copy of what the cluster has agreed on, the newest there is.
    pub(crate) fn state(&self) -> Option<Arc<ClusterState>> {
        let running = self.all_running().into_iter();
        let newest = running.max_by_key(|(_, running)| running.node.meta().version())?;
        newest.1.node.meta().state()
    }

    /// Whether every replica is where the cluster wants it, and nowhere else; what is not, otherwise.
    pub(crate) fn arrived(&self) -> std::result::Result<(), String> {
        let state = self.state().ok_or("nothing is agreed on")?;
        if !state.is_settled() {
            return Err(format!("on its way: {state:?}"));
        }
        self.switch_off_removed(&state);
        for node in self.present() {
            let running = self.running(node).ok_or(format!("node {node} is down"))?;
            for group in self.groups() {
                let wanted = state.replica_on(ShardId(group.0), self.name(node));
                let held = running.group(group).map(|replica| replica.replica());
                if wanted != held {
                    return Err(format!(
                        "node {node} has {held:?} of {group}, {wanted:?} is wanted"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Ends the nodes that are no members any more. What is left on them is of no use to anybody, and nobody tells them of later states.
    pub(crate) fn switch_off_removed(&self, state: &ClusterState) {
        for node in self.present() {
            if !state.members.contains_key(self.name(node)) {
                self.crash(node, true);
                self.gone(node);
            }
        }
    }

    /// Milliseconds since the simulation began.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.shape.groups).map(GroupId)
    }

    /// The group of the shared key with this number.
    pub(crate) fn group_of(&self, number: usize) -> GroupId {
        let number = u32::try_from(number).expect("few keys");
        GroupId(number % self.shape.groups)
    }

    pub(crate) fn name(&self, node: NodeIndex) -> &NodeName {
        &self.names[node]
    }

    /// The node, if it is up.
    pub(crate) fn running(&self, node: NodeIndex) -> Option<Incarnation> {
        self.members.lock()[node].running.clone()
    }

    /// All that are up.
    pub(crate) fn all_running(&self) -> Vec<(NodeIndex, Incarnation)> {
        let members = self.members.lock();
        let running = |(index, member): (usize, &Member)| Some((index, member.running.clone()?));
        members.iter().enumerate().filter_map(running).collect()
    }

    /// The node that leads `group`, as far as one that is up knows of itself.
    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeIndex> {
        let leads = |(node, running): (NodeIndex, Incarnation)| {
            let group = running.group(group)?;
            group.is_leader().then(|| (group.status().term, node))
        };
        Some(self.all_running().into_iter().filter_map(leads).max()?.1)
    }

    pub(crate) fn clock(&self, node: NodeIndex) -> Arc<SimClock> {
        Arc::clone(&self.members.lock()[node].clock)
    }

    pub(crate) fn fs(&self, node: NodeIndex) -> SimFileSystem {
        self.members.lock()[node].fs.clone()
    }

    /// The node's disk takes up to so many milliseconds for a sync.
    pub(crate) fn set_sync_ms_max(&self, node: NodeIndex, most: u64) {
        self.members.lock()[node].sync_ms_max.store(most, Ordering::SeqCst);
    }

    /// Starts a node on what its disk holds.
    pub(crate) async fn start(&self, index: NodeIndex) -> Result<()> {
        let (fs, clock, sync_ms_max, number, seed) = {
            let mut members = self.members.lock();
            let member = &mut members[index];
            assert!(member.running.is_none(), "node {index} is up already");
            member.incarnations += 1;
            let seed: u64 = self.random.lock().random();
            (
                member.fs.clone(),
                Arc::clone(&member.clock),
                Arc::clone(&member.sync_ms_max),
                member.incarnations,
                seed,
            )
        };
        let shared = Arc::new(fs.clone());
        let options = LogOptions {
            segment_bytes: self.shape.segment_bytes,
            buffer_bytes_max: 16 << 10,
            cache_bytes: self.shape.cache_bytes,
            background: Background::Caller,
            salt_seed: seed,
        };
        for directory in ["/node/inbox", "/node/outbox"] {
            remove_directories(&fs, &PathBuf::from(directory)).map_err(super::io_error)?;
        }
        let log = LogStore::open(shared.clone(), "/node/log".into(), options);
        let log = Arc::new(log.map_err(super::io_error)?);
        let mut options = LsmOptions { log: false, threads: 0, ..LsmOptions::tiny(seed) };
        // Writes stop when flushes or compactions are behind, or go on. To slow them down takes real time, which no seed decides.
        options.pacer.l0_hard = options.pacer.l0_stop;
        options.pacer.l0_soft = options.pacer.l0_stop - 1;
        options.pacer.sealed_stop = 2;
        if self.shape.large_memtables {
            options.memtable_bytes = 1 << 20;
            options.memtables_bytes_max = 8 << 20;
        }
        let environment = Arc::new(LsmEnvironment::open(shared.clone(), "/node/data", options)?);
        let disk = tokio::spawn(work_disk(
            Arc::clone(&log),
            Arc::clone(&environment),
            sync_ms_max,
            StdRng::seed_from_u64(seed),
        ));
        let transport = SimTransport::new(&self.network, index, fs.clone());
        let settings = group::Settings {
            cluster: Uuid::from_u128(7),
            node: self.names[index].clone(),
            election_timeout: self.shape.election_timeout,
            heartbeat_interval: self.shape.heartbeat_interval,
            log_keep: self.shape.log_keep,
            log_sent_bytes: LOG_SENT_BYTES,
            stale_max: Some(STALE_MAX),
            follower_reads: self.shape.follower_reads,
            budget: Budget::new(1 << 20),
            room: Arc::new(Room::new(shared.clone(), "/node".into(), 0)),
            transport: transport.clone(),
            clock,
            outbox: "/node/outbox".into(),
            fs: shared,
        };
        let crashed = CancellationToken::new();
        let node = Node::start(Parts {
            places: self.groups().map(Place::new).collect(),
            origin: self.origin(index),
            log: Arc::clone(&log),
            environment: environment as Arc<dyn Environment>,
            settings,
            limits: self.shape.limits,
            directory: "/node".into(),
            inbox: "/node/inbox".into(),
            stopping: crashed.clone(),
        })
        .await?;
        node.start_tasks();
        self.network.connect(index, Arc::new(Inbound(Arc::clone(&node))), fs.clone(), number);
        let (ended, log_of_ended) = (crashed.clone(), Arc::clone(&log));
        tokio::spawn(async move {
            ended.cancelled().await;
            sleep(Duration::from_secs(1)).await;
            disk.abort();
            // What waits for the disk learns that it will not come.
            log_of_ended.drive();
        });
        let running = Incarnation { node, log, number, crashed, fs, transport };
        self.members.lock()[index].running = Some(running);
        Ok(())
    }

    /// How the node comes to the cluster.
    fn origin(&self, index: NodeIndex) -> Origin {
        if let Standing::Joined(meta) = self.members.lock()[index].standing {
            return Origin::Newcomer { meta };
        }
        let founders = &self.names[..self.shape.founders];
        let meta = ClusterState::first_meta_replica(founders, &self.names[index]);
        Origin::Founder {
            meta: meta.expect("it is a founder"),
            voters: ClusterState::first_meta_voters(founders),
            state: Box::new(first_state(&self.shape, founders)),
        }
    }

    /// The node loses power now; `killed`: only its process ends.
    pub(crate) fn crash(&self, index: NodeIndex, killed: bool) {
        let seed = self.random.lock().random();
        let mut members = self.members.lock();
        let member = &mut members[index];
        let Some(running) = member.running.take() else { return };
        self.network.disconnect(index);
        running.transport.kill();
        let next = if killed { member.fs.restart_killed() } else { member.fs.restart(seed) };
        // Nobody of this life reaches the disk of the next.
        member.fs.crash_now();
        member.fs = next;
        running.crashed.cancel();
        let ending = tokio::spawn(async move { running.node.stop().await });
        self.endings.lock().push(ending);
    }

    /// A node that is not up loses power.
    pub(crate) fn lose_power(&self, index: NodeIndex) {
        let seed = self.random.lock().random();
        let member = &mut self.members.lock()[index];
        let next = member.fs.restart(seed);
        member.fs.crash_now();
        member.fs = next;
    }

    /// Stops what still runs, and waits for all that was.
    pub(crate) async fn end(&self) {
        for node in 0..self.shape.nodes() {
            self.crash(node, true);
        }
        let endings = std::mem::take(&mut *self.endings.lock());
        for ending in endings {
            ending.await.expect("stopping does not panic");
        }
    }
}

/// The nodes' names, founders in the order in which they should lead the first group: stories begin with the first node as its leader.
fn names(shape: &Shape) -> Vec<NodeName> {
    let mut names: Vec<_> =
        (1..=shape.nodes()).map(|number| NodeName(format!("n{number}"))).collect();
    let founders = &mut names[..shape.founders];
    let state = first_state(shape, founders);
    let order = state.placement.nodes(ShardId(0));
    founders.sort_by_key(|name| order.iter().position(|it| it == name).unwrap_or(order.len()));
    names
}

/// What the cluster begins with.
fn first_state(shape: &Shape, founders: &[NodeName]) -> ClusterState {
    let Shape { groups, replication_factor, .. } = *shape;
    let settings = Settings { replication_factor, replace_after_seconds: 0, ..Settings::default() };
    ClusterState::found(founders.iter().map(newcomer).collect(), groups, settings)
}

/// A node as it says of itself.
pub(crate) fn newcomer(name: &NodeName) -> Newcomer {
    Newcomer {
        name: name.clone(),
        incarnation: crate::cluster::Incarnation(Uuid::from_u128(7)),
        address: name.0.clone(),
        weight: Weight::USUAL,
        zone: None,
    }
}

/// Removes a directory of flat directories.
fn remove_directories(fs: &SimFileSystem, directory: &std::path::Path) -> std::io::Result<()> {
    if fs.exists(directory)? {
        for name in fs.list(directory)? {
            remove_files(fs, &directory.join(name))?;
        }
    }
    Ok(())
}

/// Does what threads would do, after as long as they would take.
async fn work_disk(
    log: Arc<LogStore>,
    environment: Arc<LsmEnvironment>,
    sync_ms_max: Arc<std::sync::atomic::AtomicU64>,
    mut random: StdRng,
) {
    loop {
        let most = sync_ms_max.load(Ordering::SeqCst);
        sleep(Duration::from_millis(random.random_range(1..=most.max(1)))).await;
        log.drive();
        match random.random_range(0..16) {
            // A full disk or a broken one shows in the next append.
            0 => drop(log.maintain()),
            1..4 => _ = environment.drive(),
            _ => {}
        }
    }
}
