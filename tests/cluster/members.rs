//! Clusters whose nodes come and go under load: three nodes become five and three again, one becomes three, a lost one is replaced, one is drained, and those that take
//! part in a move are killed in the middle of it.
//!
//! Every run ends with the questions of `story`. Clients hear of nodes that come and go; one that repeats its operations must not notice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use rand::seq::{IteratorRandom as _, SliceRandom as _};

use crate::cluster::{Cluster, Setup};
use crate::load::Shared;
use crate::operator::Seen;
use crate::story::{OPERATIONS_BETWEEN, Scene, run};
use crate::{Void, rounds};

/// Shards of these clusters: more than nodes, so that each has several.
const SHARDS: u32 = 8;

/// How long after a move has begun a node is killed, at most.
const INTO_A_MOVE_MAX: Duration = Duration::from_millis(500);

fn assert_no_repeated_operation_failed(shared: &Arc<Shared>) {
    assert_eq!(shared.failures(), Vec::<String>::new());
}

impl Cluster {
    pub(crate) fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// Waits until all nodes of this cluster are its members, and every shard is where it is to be.
    pub(crate) async fn all_settle(&self) {
        let names = self.names();
        self.settles(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }

    /// Waits until the nodes but `gone` are the members, and every shard is where it is to be.
    async fn others_settle(&self, gone: &[&str]) {
        let names = self.names();
        let stay = names.iter().map(String::as_str).filter(|name| !gone.contains(name));
        self.settles(&stay.collect::<Vec<_>>()).await;
    }

    /// Runs a command that must be refused, for a reason that it tells.
    async fn is_refused(&self, arguments: &[&str], reason: &str) {
        let said = self.kvstore(arguments).await.expect_err("it is not allowed");
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }

    async fn done(&self, arguments: &[&str]) -> String {
        self.kvstore(arguments).await.unwrap_or_else(|why| panic!("{arguments:?}: {why}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_become_five_and_three_others() {
    let shared = run("three to five to three", Setup::of(3).shards(SHARDS), grow_and_shrink).await;
    assert_no_repeated_operation_failed(&shared);
}

/// Two nodes join; the one that leads the meta group and one more leave; both are stopped when they are no members any more.
async fn grow_and_shrink(scene: &mut Scene<'_>) -> Result<(), Void> {
    let old = scene.cluster.names();
    for _ in 0..2 {
        scene.cluster.join().await;
    }
    scene.cluster.all_settle().await;
    scene.load.goes_on(OPERATIONS_BETWEEN).await?;
    let governs = scene.cluster.nodes[scene.cluster.meta_leader().await].name.clone();
    let others = old.iter().filter(|name| **name != governs);
    let other = others.choose(scene.random).expect("there were three");
    let leave = [governs.as_str(), other.as_str()];
    for name in leave {
        scene.cluster.done(&["node", "remove", name]).await;
    }
    scene.cluster.others_settle(&leave).await;
    for name in leave {
        let node = scene.cluster.position(name).expect("it is not forgotten yet");
        scene.cluster.forget(node).await;
    }
    scene.cluster.ready().await;
    scene.load.goes_on(OPERATIONS_BETWEEN).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_by_itself_becomes_three_nodes_that_find_each_other_again() {
    let shared = run("one to three", Setup::founder().shards(SHARDS), grow_from_one).await;
    assert_no_repeated_operation_failed(&shared);
}

/// A cluster of one becomes one of three; then all are stopped, and one of those that joined is reached elsewhere from now on. It starts first, with one that cannot reach it, so that
/// it leads the group that keeps the addresses as often as not.
async fn grow_from_one(scene: &mut Scene<'_>) -> Result<(), Void> {
    while scene.cluster.nodes.len() < 3 {
        scene.cluster.join().await;
    }
    scene.cluster.all_settle().await;
    scene.load.goes_on(OPERATIONS_BETWEEN).await?;
    scene.cluster.kill_all();
    let moved = scene.random.random_range(1..3);
    scene.cluster.move_node(moved);
    let mut others = [0, 3 - moved];
    others.shuffle(scene.random);
    for node in [moved, others[0]] {
        scene.cluster.start_node(node);
    }
    for node in [moved, others[0]] {
        scene.cluster.nodes[node].ready().await;
    }
    scene.cluster.start_node(others[1]);
    scene.cluster.ready().await;
    scene.cluster.all_settle().await;
    scene.load.goes_on(OPERATIONS_BETWEEN).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_lost_for_good_is_replaced() {
    let shared = run("lost for good", Setup::of(3).shards(SHARDS), lose_and_replace).await;
    assert_no_repeated_operation_failed(&shared);
}

/// Two nodes lose their disks. The first one is replaced by command, the second one by itself.
async fn lose_and_replace(scene: &mut Scene<'_>) -> Result<(), Void> {
    let cluster = &mut *scene.cluster;
    let lost = scene.random.random_range(0..cluster.nodes.len());
    let name = cluster.nodes[lost].name.clone();
    cluster.kill_node(lost);
    cluster.nodes[lost].wipe();
    // What comes back under the old name has forgotten what it voted for.
    cluster.start_node(lost);
    let status = cluster.nodes[lost].ended().await;
    let said = cluster.nodes[lost].tail();
    assert_ne!(status.code(), Some(0), "{said}");
    let what_to_do =
        "its data directory was wiped or replaced; remove it and add it under a new name";
    assert!(said.contains(what_to_do), "{said}");

    let new = cluster.join().await;
    let by = cluster.nodes[new].name.clone();
    cluster.done(&["node", "replace", &name, &by]).await;
    cluster.others_settle(&[&name]).await;
    cluster.forget(lost).await;
    scene.load.goes_on(OPERATIONS_BETWEEN).await?;

    cluster.join().await;
    cluster.all_settle().await;
    cluster.done(&["cluster", "settings", "--replace-after", "1s"]).await;
    let lost = scene.random.random_range(0..cluster.nodes.len());
    let name = cluster.nodes[lost].name.clone();
    cluster.kill_node(lost);
    cluster.nodes[lost].wipe();
    cluster.others_settle(&[&name]).await;
    cluster.forget(lost).await;
    cluster.done(&["cluster", "settings", "--replace-after", "30m"]).await;
    cluster.ready().await;
    scene.load.goes_on(OPERATIONS_BETWEEN).await?;
    given_up_and_found_again(scene).await
}

/// A node that cannot be reached is removed by force only. When it comes back with all its data it learns that, and serves nothing.
async fn given_up_and_found_again(scene: &mut Scene<'_>) -> Result<(), Void> {
    let cluster = &mut *scene.cluster;
    cluster.join().await;
    cluster.all_settle().await;
    let lost = scene.random.random_range(0..cluster.nodes.len());
    let name = cluster.nodes[lost].name.clone();
    cluster.kill_node(lost);
    cluster.all_see(&name, "down").await;
    cluster.is_refused(&["node", "remove", &name], "remove it with --force").await;
    cluster.done(&["node", "remove", "--force", &name]).await;
    cluster.others_settle(&[&name]).await;
    cluster.start_node(lost);
    cluster.serves_nothing(lost, "this node was removed from its cluster while it was away").await;
    cluster.forget(lost).await;
    cluster.ready().await;
    scene.load.goes_on(OPERATIONS_BETWEEN).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_drained_and_comes_back_and_what_harms_is_refused() {
    let shared = run("drain", Setup::of(3).shards(SHARDS), drain_and_add).await;
    assert_no_repeated_operation_failed(&shared);
}

/// What three nodes cannot do without one of them is refused; a fourth one joins, and any of them is drained, serves on without any replica, and gets its own back.
async fn drain_and_add(scene: &mut Scene<'_>) -> Result<(), Void> {
    let cluster = &mut *scene.cluster;
    let name = cluster.names().into_iter().choose(scene.random).expect("there are three");
    let needed = "every shard is to have 3 replicas";
    cluster.is_refused(&["node", "remove", &name], needed).await;
    cluster.is_refused(&["node", "drain", &name], needed).await;
    cluster.is_refused(&["node", "remove", "n99"], "there is no node n99; the members are").await;
    cluster.is_refused(&["node", "replace", &name, &name], "cannot take its own place").await;
    let factor = ["cluster", "settings", "--replication-factor", "10"];
    cluster.is_refused(&factor, "it must be 1 to 9").await;

    let new = cluster.join().await;
    cluster.all_settle().await;
    cluster.done(&["node", "drain", &name]).await;
    let names = cluster.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let is_drained = |seen: &Seen| {
        let node = &seen.nodes[&name];
        (node.state.as_str(), node.replicas) == ("draining", 0)
    };
    cluster.settles_when(&names, is_drained).await;
    scene.load.goes_on(OPERATIONS_BETWEEN).await?;
    let address = cluster.nodes[cluster.position(&name).expect("it is there")].grpc.to_string();
    cluster.done(&["node", "add", &name, &address]).await;
    let is_back = |seen: &Seen| seen.nodes[&name].state == "up" && seen.nodes[&name].replicas > 0;
    cluster.settles_when(&names, is_back).await;

    // It ends with as many as it began with, for another round.
    let new_name = cluster.nodes[new].name.clone();
    cluster.done(&["node", "remove", &new_name]).await;
    cluster.others_settle(&[&new_name]).await;
    cluster.forget(new).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_come_to_an_end_whoever_is_killed_in_the_middle() {
    run("killed in moves", Setup::of(4).shards(2 * SHARDS), kill_in_moves).await;
}

/// Who is killed while replicas move.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Source,
    Target,
    MetaLeader,
}

/// A node is drained, or gets its shards back; while replicas move one of those that take part is killed at any moment and comes back; all moves come to an end.
async fn kill_in_moves(scene: &mut Scene<'_>) -> Result<(), Void> {
    let cluster = &mut *scene.cluster;
    let mut drained: Option<String> = None;
    let mut hits = 0;
    let victims = [Victim::Source, Victim::Target, Victim::MetaLeader];
    for victim in victims.into_iter().cycle().take(rounds()) {
        let name = if let Some(name) = drained.take() {
            cluster.kvstore_at_last(&["node", "add", &name, "127.0.0.1:1"]).await;
            name
        } else {
            let name = cluster.names().into_iter().choose(scene.random).expect("four");
            cluster.kvstore_at_last(&["node", "drain", &name]).await;
            drained = Some(name.clone());
            name
        };
        let moment = INTO_A_MOVE_MAX.mul_f64(scene.random.random());
        tokio::time::sleep(moment).await;
        let moving = ends_of_moves(cluster).await;
        let node = match victim {
            Victim::Source => moving.sources.into_iter().choose(scene.random),
            Victim::Target => moving.targets.into_iter().choose(scene.random),
            Victim::MetaLeader => Some(cluster.meta_leader().await),
        };
        if let Some(node) = node {
            println!(
                "killed in moves: {victim:?} {}, {moment:?} after {name} was drained or added",
                cluster.nodes[node].name
            );
            cluster.kill_node(node);
            cluster.start_node(node);
            hits += 1;
        }
        cluster.ready().await;
        cluster.all_settle().await;
        scene.load.goes_on(OPERATIONS_BETWEEN).await?;
    }
    if let Some(name) = drained {
        cluster.kvstore_at_last(&["node", "add", &name, "127.0.0.1:1"]).await;
        cluster.all_settle().await;
    }
    if hits == 0 { Err(Void("nothing moved when nodes were killed".to_owned())) } else { Ok(()) }
}

/// Nodes that replicas come from and go to now.
#[derive(Default)]
struct Moving {
    sources: BTreeSet<usize>,
    targets: BTreeSet<usize>,
}

async fn ends_of_moves(cluster: &Cluster) -> Moving {
    let mut moving = Moving::default();
    let shards = cluster.seen().await.map(|seen| seen.shards).unwrap_or_default();
    for change in shards.into_iter().filter_map(|shard| shard.change) {
        moving.sources.extend(cluster.position(&change.from));
        moving.targets.extend(cluster.position(&change.to));
    }
    moving
}
