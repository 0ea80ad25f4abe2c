//! A cluster of processes on this machine, for one test. What operators do with it is in `operator`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use futures::future::join_all;
use kvstore::proto::admin::ListShardsRequest;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::process::{Process, admin, free_port};
use crate::proxy::{Link, Network};
use crate::{PATIENCE, Void};

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) nodes: usize,
    /// Whether they are a cluster; of one node, a cluster that others can join.
    pub(crate) founds: bool,
    pub(crate) shards: u32,
    /// Whether what the nodes say to each other goes through proxies.
    pub(crate) proxied: bool,
    /// More settings, as they are called in the environment.
    pub(crate) settings: Vec<(&'static str, &'static str)>,
}

impl Setup {
    /// So many nodes.
    pub(crate) fn of(nodes: usize) -> Self {
        Self { nodes, founds: nodes > 1, shards: 4, proxied: false, settings: Vec::new() }
    }

    /// One node that founds a cluster.
    pub(crate) fn founder() -> Self {
        Self { founds: true, ..Self::of(1) }
    }

    pub(crate) fn shards(self, shards: u32) -> Self {
        Self { shards, ..self }
    }

    pub(crate) fn proxied(self) -> Self {
        Self { proxied: true, ..self }
    }

    pub(crate) fn with(mut self, settings: &[(&'static str, &'static str)]) -> Self {
        self.settings.extend(settings);
        self
    }
}

/// A node's name, and where clients reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) name: String,
    pub(crate) grpc: SocketAddr,
}

/// The processes, their network and their directory.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Process>,
    pub(crate) network: Option<Network>,
    pub(crate) shards: u32,
    directory: Option<TempDir>,
    /// What all nodes are started with.
    environment: Vec<(String, String)>,
    /// Names that were given to nodes so far.
    named: usize,
    reached: watch::Sender<Vec<Reach>>,
}

impl Cluster {
    /// Starts all nodes and waits until they are ready.
    pub(crate) async fn start(setup: &Setup) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listen: Vec<SocketAddr> =
            (0..setup.nodes).map(|_| (Ipv4Addr::LOCALHOST, free_port()).into()).collect();
        let network = if setup.proxied { Some(Network::start(&listen).await) } else { None };
        let reached = network.as_ref().map_or(&listen, |network| &network.addresses);
        let members = (1..).zip(reached).map(|(number, address)| format!("n{number}={address}"));
        let members = members.collect::<Vec<_>>().join(",");
        let mut environment = vec![
            ("KVSTORE_HASHRING_SHARDS".to_owned(), setup.shards.to_string()),
            ("LOGGING_LEVEL".to_owned(), "info".to_owned()),
        ];
        for (name, value) in &setup.settings {
            environment.push(((*name).to_owned(), (*value).to_owned()));
        }
        let mut cluster = Self {
            nodes: Vec::new(),
            network,
            shards: setup.shards,
            directory: Some(directory),
            environment,
            named: 0,
            reached: watch::Sender::default(),
        };
        for grpc in listen {
            let node = cluster.new_node(grpc);
            if setup.founds {
                cluster.nodes[node].set("KVSTORE_CLUSTER_MEMBERS", &members);
            }
            cluster.start_node(node);
        }
        cluster.ready().await;
        cluster
    }

    /// A node under a new name, not started.
    fn new_node(&mut self, grpc: SocketAddr) -> usize {
        self.named += 1;
        let name = format!("n{}", self.named);
        let directory = self.directory.as_ref().expect("it is there until the end").path();
        let node = Process::new(&name, grpc, &directory.join(&name), self.environment.clone());
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Starts a node under a new name that joins the others, and waits until it is ready. Clients hear of it then.
    pub(crate) async fn join(&mut self) -> usize {
        assert!(self.network.is_none(), "nodes that join have no proxies");
        let seeds = self.seeds();
        let node = self.new_node((Ipv4Addr::LOCALHOST, free_port()).into());
        self.nodes[node].set("KVSTORE_CLUSTER_JOIN", &seeds);
        self.start_node(node);
        self.nodes[node].ready().await;
        self.tell_clients();
        node
    }

    /// Has a node that does not run be reached elsewhere from now on; it is told where the others are.
    pub(crate) fn move_node(&mut self, node: usize) {
        let seeds: Vec<String> = self.others(node).map(|other| other.grpc.to_string()).collect();
        self.nodes[node].set("KVSTORE_CLUSTER_JOIN", &seeds.join(","));
        self.nodes[node].grpc = (Ipv4Addr::LOCALHOST, free_port()).into();
        self.tell_clients();
    }

    /// Forgets a node that is no member any more, if it runs it is stopped first.
    pub(crate) async fn forget(&mut self, node: usize) {
        if self.nodes[node].is_running() {
            let status = self.nodes[node].stop().await;
            assert_eq!(status.code(), Some(0), "{} does not stop cleanly", self.nodes[node].name);
        }
        self.nodes.remove(node);
        self.tell_clients();
    }

    /// Where a node asks to be let in.
    fn seeds(&self) -> String {
        self.nodes.iter().map(|node| node.grpc.to_string()).collect::<Vec<_>>().join(",")
    }

    fn others(&self, node: usize) -> impl Iterator<Item = &Process> {
        let others = self.nodes.iter().enumerate().filter(move |(other, _)| *other != node);
        others.map(|(_, other)| other)
    }

    /// The position of a node.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Where clients reach the nodes, now and later.
    pub(crate) fn reached(&self) -> watch::Receiver<Vec<Reach>> {
        self.reached.subscribe()
    }

    fn tell_clients(&self) {
        let reach = |node: &Process| Reach { name: node.name.clone(), grpc: node.grpc };
        let reached = self.nodes.iter().map(reach).collect();
        self.reached.send_if_modified(|known| {
            let changed = *known != reached;
            *known = reached;
            changed
        });
    }

    pub(crate) fn start_node(&mut self, node: usize) {
        self.nodes[node].start();
        self.tell_network(node);
    }

    pub(crate) fn kill_node(&mut self, node: usize) {
        self.nodes[node].kill();
        self.tell_network(node);
    }

    /// Asks a node to stop and waits until it has.
    pub(crate) async fn stop_node(&mut self, node: usize) -> ExitStatus {
        let status = self.nodes[node].stop().await;
        self.tell_network(node);
        status
    }

    /// Kills all nodes at one instant.
    pub(crate) fn kill_all(&mut self) {
        for node in &self.nodes {
            node.signal(Signal::KILL);
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].wait();
            self.tell_network(node);
        }
    }

    fn tell_network(&self, node: usize) {
        if let Some(network) = &self.network {
            network.set_pid(node, self.nodes[node].pid());
        }
    }

    /// Ends every fault: links whole, all processes running and ready.
    pub(crate) async fn heal(&mut self) {
        if let Some(network) = &self.network {
            network.set_all(Link::default());
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_running() {
                self.nodes[node].resume();
            } else {
                self.start_node(node);
            }
        }
        self.ready().await;
    }

    /// Waits until all nodes are ready, and those that hold a shard agree on its leader.
    pub(crate) async fn ready(&mut self) {
        for node in &mut self.nodes {
            node.ready().await;
        }
        self.tell_clients();
        let nodes = self.reached.borrow().clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let views = views(&nodes).await;
            if views.iter().all(Option::is_some) && agree(&views, self.shards) {
                return;
            }
            assert!(Instant::now() < deadline, "no agreement on leaders: {views:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The node that leads each shard, as most nodes that answer say.
    pub(crate) async fn leaders(&self) -> BTreeMap<u32, usize> {
        let nodes = self.reached.borrow().clone();
        let leaders = leaders(&nodes).await.into_iter();
        leaders.filter_map(|(shard, name)| Some((shard, self.position(&name)?))).collect()
    }

    /// The node that leads a shard.
    pub(crate) async fn leader_of(&self, shard: u32) -> Option<usize> {
        self.leaders().await.remove(&shard)
    }

    /// Waits until another node than `old` leads a shard: the fault took effect.
    pub(crate) async fn leader_moves(&self, shard: u32, old: usize) -> Result<usize, Void> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.leader_of(shard).await {
                Some(leader) if leader != old => return Ok(leader),
                _ if Instant::now() > deadline => {
                    let old = &self.nodes[old].name;
                    return Err(Void(format!(
                        "{old} still leads shard {shard} after {PATIENCE:?}"
                    )));
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The logs' ends, for the report of a failure.
    pub(crate) fn tails(&self) -> String {
        self.nodes.iter().map(Process::tail).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(directory) = self.directory.take()
        {
            println!("{}\nall files are kept in {}", self.tails(), directory.keep().display());
        }
    }
}

/// The shards that a node holds and their leaders, as it sees them.
pub(crate) type View = BTreeMap<u32, String>;

/// What each node says; none of those that do not answer.
pub(crate) async fn views(nodes: &[Reach]) -> Vec<Option<View>> {
    join_all(nodes.iter().map(|node| async {
        let shards = admin(node.grpc).await?.list_shards(ListShardsRequest {}).await.ok()?;
        let shards = shards.into_inner().shards.into_iter();
        // Of the others it knows less.
        let held = shards.filter(|shard| shard.replicas.contains(&node.name));
        Some(held.map(|shard| (shard.id, shard.leader)).collect())
    }))
    .await
}

/// Whether every shard has a leader, and one only.
fn agree(views: &[Option<View>], shards: u32) -> bool {
    let mut leaders: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for (shard, leader) in views.iter().flatten().flatten() {
        leaders.entry(*shard).or_default().insert(leader);
    }
    let one = |leaders: &BTreeSet<&str>| leaders.len() == 1 && !leaders.contains("");
    leaders.len() == shards as usize && leaders.values().all(one)
}

/// The leader of each shard, as most nodes say that hold it and know one.
pub(crate) async fn leaders(nodes: &[Reach]) -> View {
    let mut votes: BTreeMap<u32, BTreeMap<String, usize>> = BTreeMap::new();
    for (shard, leader) in views(nodes).await.into_iter().flatten().flatten() {
        if !leader.is_empty() {
            *votes.entry(shard).or_default().entry(leader).or_default() += 1;
        }
    }
    let most = |votes: BTreeMap<String, usize>| votes.into_iter().max_by_key(|(_, count)| *count);
    votes.into_iter().filter_map(|(shard, votes)| Some((shard, most(votes)?.0))).collect()
}
