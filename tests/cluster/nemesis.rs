//! Faults. Each waits until it has taken effect and says so if it has not.

use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::seq::IteratorRandom as _;

use crate::proxy::{Link, Network};
use crate::story::{OPERATIONS_BETWEEN, Scene};
use crate::{PATIENCE, Void};

/// How long a paused node stands still when nobody can take its place.
const PAUSE_ALONE: Duration = Duration::from_millis(1500);

impl Scene<'_> {
    fn any_shard(&mut self) -> u32 {
        self.random.random_range(0..self.cluster.shards)
    }

    /// Any shard, and the node that leads it.
    async fn any_leader(&mut self) -> Result<(u32, usize), Void> {
        let shard = self.any_shard();
        let leader = self.cluster.leader_of(shard).await;
        leader
            .map(|leader| (shard, leader))
            .ok_or_else(|| Void(format!("nobody leads shard {shard}")))
    }

    /// A node that leads no shard.
    async fn any_follower(&mut self) -> Result<usize, Void> {
        let leaders = self.cluster.leaders().await;
        let followers = (0..self.cluster.nodes.len())
            .filter(|node| !leaders.values().any(|leader| leader == node));
        followers.choose(self.random).ok_or_else(|| Void("every node leads a shard".to_owned()))
    }

    fn network(&self) -> &Network {
        self.cluster.network.as_ref().expect("the cluster was set up with proxies")
    }

    /// Ends all cuts. They had no effect if no byte was held back since then.
    fn heal_network(&self, held_before: u64) -> Result<(), Void> {
        let held = self.network().held() - held_before;
        self.network().set_all(Link::default());
        if held > 0 { Ok(()) } else { Err(Void("the cut held nothing back".to_owned())) }
    }

    fn is_alone(&self) -> bool {
        self.cluster.nodes.len() == 1
    }

    async fn start_again(&mut self, node: usize) {
        self.cluster.start_node(node);
        self.cluster.ready().await;
    }
}

/// kill -9 of the leader of a shard; another node leads it and serves; the killed one comes back.
pub(crate) async fn kill_leader(scene: &mut Scene<'_>) -> Result<(), Void> {
    let (shard, leader) = scene.any_leader().await?;
    scene.cluster.kill_node(leader);
    if !scene.is_alone() {
        scene.cluster.leader_moves(shard, leader).await?;
        scene.load.goes_on(OPERATIONS_BETWEEN).await?;
    }
    scene.start_again(leader).await;
    Ok(())
}

/// kill -9 of a node that leads nothing: the others serve meanwhile.
pub(crate) async fn kill_follower(scene: &mut Scene<'_>) -> Result<(), Void> {
    let follower = scene.any_follower().await?;
    scene.cluster.kill_node(follower);
    scene.load.goes_on(OPERATIONS_BETWEEN).await?;
    scene.start_again(follower).await;
    Ok(())
}

/// kill -9 of all nodes at one instant.
pub(crate) async fn kill_all(scene: &mut Scene<'_>) -> Result<(), Void> {
    scene.cluster.kill_all();
    for node in 0..scene.cluster.nodes.len() {
        scene.cluster.start_node(node);
    }
    scene.cluster.ready().await;
    Ok(())
}

/// The leader of a shard stands still until another one leads, and goes on as if nothing had been.
pub(crate) async fn pause_leader(scene: &mut Scene<'_>) -> Result<(), Void> {
    let (shard, leader) = scene.any_leader().await?;
    scene.cluster.nodes[leader].pause();
    let moved = if scene.is_alone() {
        tokio::time::sleep(PAUSE_ALONE).await;
        Ok(())
    } else {
        match scene.cluster.leader_moves(shard, leader).await {
            Ok(_) => scene.load.goes_on(OPERATIONS_BETWEEN).await,
            Err(void) => Err(void),
        }
    };
    scene.cluster.nodes[leader].resume();
    moved?;
    scene.cluster.ready().await;
    Ok(())
}

/// Every second some node is killed and started again, whether the others are back or not.
pub(crate) async fn restart_storm(scene: &mut Scene<'_>) -> Result<(), Void> {
    let end = Instant::now() + crate::seconds();
    let mut kills = 0;
    while Instant::now() < end || kills == 0 {
        let node = scene.random.random_range(0..scene.cluster.nodes.len());
        scene.cluster.kill_node(node);
        scene.cluster.start_node(node);
        kills += 1;
        tokio::time::sleep(Duration::from_millis(scene.random.random_range(500..1500))).await;
    }
    scene.cluster.ready().await;
    Ok(())
}

/// SIGTERM to one node after the other, each started again; each ends with code 0.
pub(crate) async fn stop_one_after_the_other(scene: &mut Scene<'_>) -> Result<(), Void> {
    for node in 0..scene.cluster.nodes.len() {
        let status = scene.cluster.stop_node(node).await;
        let name = &scene.cluster.nodes[node].name;
        assert_eq!(status.code(), Some(0), "{name} did not stop cleanly");
        if !scene.is_alone() {
            scene.load.goes_on(OPERATIONS_BETWEEN).await?;
        }
        scene.start_again(node).await;
    }
    Ok(())
}

/// Writes that a node misses so that the others have purged their logs meanwhile, with the settings of [`SMALL_LOG`].
const MISSED: u64 = 3_000;

/// Settings with which logs are purged soon.
pub(crate) const SMALL_LOG: [(&str, &str); 2] =
    [("KVSTORE_RAFT_LOGKEEP", "10"), ("KVSTORE_RAFT_SNAPSHOTLOGSIZE", "4KB")];

/// A node is away until what it missed is in no log any more: it gets a snapshot.
pub(crate) async fn miss_the_log(scene: &mut Scene<'_>) -> Result<(), Void> {
    let node = scene.random.random_range(0..scene.cluster.nodes.len());
    scene.cluster.kill_node(node);
    scene.load.goes_on(MISSED).await?;
    scene.start_again(node).await;
    let process = &scene.cluster.nodes[node];
    let deadline = Instant::now() + PATIENCE;
    while !process.has_logged("took over a snapshot") {
        if Instant::now() > deadline {
            return Err(Void(format!("{} came back without a snapshot", process.name)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// In which direction a node is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Both,
    /// What it sends is lost.
    Outgoing,
    /// What is sent to it is lost.
    Incoming,
}

const CUT: Link = Link { cut: true, delay: Duration::ZERO, jitter: Duration::ZERO };

/// The leader of a shard is cut off from all other nodes, not from clients; another node leads and serves; the network is healed.
pub(crate) async fn cut_leader(scene: &mut Scene<'_>, cut: Cut) -> Result<(), Void> {
    let (shard, leader) = scene.any_leader().await?;
    let nodes = scene.cluster.nodes.len();
    let network = scene.network();
    let held = network.held();
    for other in (0..nodes).filter(|node| *node != leader) {
        if cut != Cut::Incoming {
            network.set(leader, other, CUT);
        }
        if cut != Cut::Outgoing {
            network.set(other, leader, CUT);
        }
    }
    scene.cluster.leader_moves(shard, leader).await?;
    scene.load.goes_on(OPERATIONS_BETWEEN).await?;
    scene.heal_network(held)?;
    scene.cluster.ready().await;
    Ok(())
}

/// Two nodes do not reach each other, and a third one reaches both: every shard is served all the time.
pub(crate) async fn cut_triangle(scene: &mut Scene<'_>) -> Result<(), Void> {
    let nodes = scene.cluster.nodes.len();
    let first = scene.random.random_range(0..nodes);
    let second = (first + 1) % nodes;
    let network = scene.network();
    let held = network.held();
    network.set(first, second, CUT);
    network.set(second, first, CUT);
    let end = Instant::now() + PARTIAL_CUT;
    while Instant::now() < end {
        scene.load.goes_on(OPERATIONS_BETWEEN).await?;
    }
    scene.heal_network(held)?;
    scene.cluster.ready().await;
    Ok(())
}

/// How long two nodes do not reach each other: some elections' time.
const PARTIAL_CUT: Duration = Duration::from_secs(5);

/// Settings for [`slow_network`]: a sign of life must arrive and be answered before the next one.
pub(crate) const SLOW_NETWORK: [(&str, &str); 2] =
    [("KVSTORE_RAFT_HEARTBEATINTERVAL", "400ms"), ("KVSTORE_RAFT_ELECTIONTIMEOUT", "3000ms")];

/// Every message takes 25 to 125 ms; now and then all connections break. N2 of the fault cases.
pub(crate) async fn slow_network(scene: &mut Scene<'_>) -> Result<(), Void> {
    let (delay, jitter) = (Duration::from_millis(25), Duration::from_millis(100));
    scene.network().set_all(Link { cut: false, delay, jitter });
    for _ in 0..3 {
        scene.load.goes_on(OPERATIONS_BETWEEN).await?;
        scene.network().reset_connections();
    }
    scene.load.goes_on(OPERATIONS_BETWEEN).await?;
    scene.network().set_all(Link::default());
    scene.cluster.ready().await;
    Ok(())
}
