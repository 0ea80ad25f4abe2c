//! A cluster of processes on this machine, for one test.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use futures::future::join_all;
use kvstore::proto::admin::ListShardsRequest;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Process, admin, free_port};
use crate::proxy::{Link, Network};
use crate::{PATIENCE, Void};

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) nodes: usize,
    pub(crate) shards: u32,
    /// Whether what the nodes say to each other goes through proxies.
    pub(crate) proxied: bool,
    /// More settings, as they are called in the environment.
    pub(crate) settings: Vec<(&'static str, &'static str)>,
}

impl Setup {
    /// So many nodes.
    pub(crate) fn of(nodes: usize) -> Self {
        Self { nodes, shards: 4, proxied: false, settings: Vec::new() }
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

/// The processes, their network and their directory.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Process>,
    pub(crate) network: Option<Network>,
    pub(crate) shards: u32,
    directory: Option<TempDir>,
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
        if setup.nodes > 1 {
            environment.push(("KVSTORE_CLUSTER_MEMBERS".to_owned(), members));
        }
        for (name, value) in &setup.settings {
            environment.push(((*name).to_owned(), (*value).to_owned()));
        }
        let nodes = (1..).zip(listen).map(|(number, grpc)| {
            let name = format!("n{number}");
            Process::new(&name, grpc, &directory.path().join(&name), environment.clone())
        });
        let nodes = nodes.collect();
        let directory = Some(directory);
        let mut cluster = Self { nodes, network, shards: setup.shards, directory };
        for node in 0..setup.nodes {
            cluster.start_node(node);
        }
        cluster.ready().await;
        cluster
    }

    /// Where clients reach the nodes.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.grpc).collect()
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

    /// Waits until all nodes are ready and agree on a leader for each shard.
    pub(crate) async fn ready(&mut self) {
        for node in &mut self.nodes {
            node.ready().await;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let views = views(&self.addresses()).await;
            let first = views[0].clone().unwrap_or_default();
            let complete = first.values().filter(|leader| !leader.is_empty()).count();
            if complete == self.shards as usize && views.iter().all(|v| v.as_ref() == Some(&first))
            {
                return;
            }
            assert!(Instant::now() < deadline, "no agreement on leaders: {views:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The node that leads each shard, as most nodes that answer say.
    pub(crate) async fn leaders(&self) -> BTreeMap<u32, usize> {
        let position = |name: &str| self.nodes.iter().position(|node| node.name == name);
        let leaders = leaders(&self.addresses()).await.into_iter();
        leaders.filter_map(|(shard, name)| Some((shard, position(&name)?))).collect()
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

/// Shards and their leaders, as one node sees them.
pub(crate) type View = BTreeMap<u32, String>;

/// What each node says; none of those that do not answer.
pub(crate) async fn views(addresses: &[SocketAddr]) -> Vec<Option<View>> {
    join_all(addresses.iter().map(|address| async {
        let shards = admin(*address).await?.list_shards(ListShardsRequest {}).await.ok()?;
        let shards = shards.into_inner().shards.into_iter();
        Some(shards.map(|shard| (shard.id, shard.leader)).collect())
    }))
    .await
}

/// The leader of each shard, as most nodes say that know one.
pub(crate) async fn leaders(addresses: &[SocketAddr]) -> View {
    let mut votes: BTreeMap<u32, BTreeMap<String, usize>> = BTreeMap::new();
    for (shard, leader) in views(addresses).await.into_iter().flatten().flatten() {
        if !leader.is_empty() {
            *votes.entry(shard).or_default().entry(leader).or_default() += 1;
        }
    }
    let most = |votes: BTreeMap<String, usize>| votes.into_iter().max_by_key(|(_, count)| *count);
    votes.into_iter().filter_map(|(shard, votes)| Some((shard, most(votes)?.0))).collect()
}
