//! Stories of replicas that move, and of what a crash makes a node forget about it.
//!
//! What a node knows to be agreed on is in its log durably, but that it is agreed on may be forgotten in a power cut: then its copy of the cluster's state is one from before, until it
//! hears from others. In that time it must neither erase a replica that the old state does not name yet, nor make one again that the old state still names.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::cluster::{Cluster, Shape, newcomer};
use super::run::simulate;
use super::stories::{GROUP, put, shape, wait};
use crate::raft::node::LogLimits;
use crate::raft::planted::{self, Bug};
use crate::raft::types::GroupId;
use crate::util::fs::FileSystem as _;

/// The node that joins.
const NEWCOMER: usize = 3;

/// Seeds of a story that needs luck: what exactly the power cut takes.
const SEEDS: u64 = 40;

/// Three founders, and a fourth node that may join.
async fn founded(seed: u64) -> Arc<Cluster> {
    let cluster = Cluster::new(Shape { spares: 1, groups: 4, ..shape() }, seed);
    cluster.start_all().await.expect("empty disks that work");
    wait("somebody leads", || cluster.leader(GROUP).is_some()).await;
    put(&cluster, 0, 1).await;
    cluster
}

async fn join(cluster: &Cluster) {
    let name = cluster.name(NEWCOMER).clone();
    let asked = cluster.running(0).expect("up").node;
    let meta = asked.meta().change(|state| {
        state.admit(newcomer(&name))?;
        Ok(state.members[&name].meta)
    });
    cluster.joined(NEWCOMER, meta.await.expect("there is room"));
    cluster.start(NEWCOMER).await.expect("a disk that works");
}

fn held(cluster: &Cluster, node: usize) -> Vec<u64> {
    let running = cluster.running(node).expect("up");
    running.node.groups().iter().map(|group| group.replica()).collect()
}

/// Power is cut at `node` now, and it comes back without hearing from anybody.
async fn cut_power(cluster: &Cluster, node: usize) {
    cluster.crash(node, false);
    cluster.network.isolate(node);
    cluster.start(node).await.expect("a disk that works");
    sleep(Duration::from_secs(5)).await;
}

#[test]
fn a_node_that_joins_takes_its_share_and_one_that_leaves_gives_it_back() {
    simulate(1, async || {
        let cluster = founded(1).await;
        join(&cluster).await;
        wait("it has its share", || cluster.arrived().is_ok()).await;
        assert_eq!(held(&cluster, NEWCOMER).len(), 3, "of four groups with three replicas each");
        put(&cluster, NEWCOMER, 2).await;
        let leaver = cluster.name(0).clone();
        let asked = cluster.running(1).expect("up").node;
        asked.meta().change(|state| state.remove(&leaver)).await.expect("three are left");
        let left = || cluster.state().is_some_and(|state| !state.members.contains_key(&leaver));
        wait("it has left", left).await;
        wait("all is where it is to be", || cluster.arrived().is_ok()).await;
        put(&cluster, NEWCOMER, 3).await;
        cluster.end().await;
    });
}

/// A long log is cut before a replica comes, although it goes back to the beginning, so that the replica gets files; the short ones of other groups are not. Nobody else
/// gets files for it: what the others lack stays.
#[test]
fn a_replica_gets_the_files_of_a_group_that_wrote_much_and_the_entries_of_one_that_did_not() {
    // No other reason to cut a log.
    let limits = LogLimits { snapshot_bytes: 1 << 20, log_bytes: 1 << 20 };
    let shape = Shape { spares: 1, groups: 4, log_keep: 1_000, limits, ..shape() };
    simulate(1, async || {
        let cluster = Cluster::new(shape, 1);
        cluster.start_all().await.expect("empty disks that work");
        wait("somebody leads", || cluster.leader(GROUP).is_some()).await;
        for number in 0..100 {
            put(&cluster, 0, number).await;
        }
        join(&cluster).await;
        wait("all is where it is to be", || cluster.arrived().is_ok()).await;
        put(&cluster, NEWCOMER, 100).await;
        let begin_later = |group: GroupId| {
            let running = cluster.all_running().into_iter();
            let held = running.filter_map(|(node, running)| {
                running.group(group)?;
                Some((node, running.log.group(group).purged()))
            });
            held.filter_map(|(node, purged)| purged.map(|_| node)).collect::<Vec<_>>()
        };
        for group in cluster.groups().filter(|group| *group != GROUP) {
            assert!(begin_later(group).is_empty(), "{group}");
        }
        let nodes = begin_later(GROUP);
        assert!(nodes.len() == 2 && nodes[1] == NEWCOMER, "the leader and the new one: {nodes:?}");
        cluster.end().await;
    });
}

/// Whoever asks for it while the replica on the new node does not vote yet is refused; the shard is served all the time, and arrives.
#[test]
fn leadership_is_not_handed_to_a_replica_that_only_follows() {
    for seed in 0..5 {
        simulate(seed, async || {
            let shape = Shape { founders: 2, replication_factor: 1, groups: 4, ..shape() };
            let cluster = Cluster::new(shape, seed);
            cluster.start_all().await.expect("empty disks that work");
            let all_led = || cluster.groups().all(|group| cluster.leader(group).is_some());
            wait("all are led", all_led).await;
            let drained = cluster.name(0).clone();
            let asked = cluster.running(0).expect("up").node;
            let target = cluster.name(1).clone();
            let groups: Vec<_> =
                cluster.groups().filter(|group| cluster.leader(*group) == Some(0)).collect();
            asked.meta().change(|state| state.drain(&drained)).await.expect("one is left");
            let mut refused = 0;
            while cluster.arrived().is_err() {
                for group in &groups {
                    let Some(leader) = asked.group(*group).filter(|group| group.is_leader()) else {
                        continue;
                    };
                    if leader.status().lag.len() == 1 {
                        // Another one comes there; it may vote by now.
                        let handed = leader.hand_over_to(&target).await;
                        refused += usize::from(handed.is_err());
                    }
                }
                sleep(Duration::from_millis(1)).await;
                assert!(cluster.now_ms() < 30_000, "the shards arrive");
            }
            assert!(!groups.is_empty() && refused > 0, "seed {seed}");
            cluster.end().await;
        });
    }
}

/// A replica comes; in that moment power is cut. Whether it is still there.
async fn lose_power_when_a_replica_comes(seed: u64) -> bool {
    let cluster = founded(seed).await;
    join(&cluster).await;
    wait("a replica comes", || !held(&cluster, NEWCOMER).is_empty()).await;
    let before = held(&cluster, NEWCOMER);
    cut_power(&cluster, NEWCOMER).await;
    let after = held(&cluster, NEWCOMER);
    cluster.end().await;
    before.iter().all(|replica| after.contains(replica))
}

#[test]
fn a_replica_survives_that_its_node_forgets_that_it_was_to_come() {
    for seed in 0..SEEDS / 4 {
        assert!(
            simulate(seed, async || lose_power_when_a_replica_comes(seed).await),
            "seed {seed}"
        );
    }
}

#[test]
fn a_node_that_erases_what_an_old_state_does_not_name_is_caught() {
    let survives = |seed| {
        let story = || simulate(seed, async || lose_power_when_a_replica_comes(seed).await);
        planted::with(Bug::BlindErase, story)
    };
    assert!((0..SEEDS).any(|seed| !survives(seed)));
}

/// A replica goes; in that moment power is cut. Whether it has come back.
async fn lose_power_when_a_replica_goes(seed: u64) -> bool {
    let cluster = founded(seed).await;
    let before: Vec<_> = (0..3).map(|node| held(&cluster, node)).collect();
    join(&cluster).await;
    let gone = |node: usize| held(&cluster, node).len() < before[node].len();
    wait("a replica goes", || (0..3).any(gone)).await;
    let node = (0..3).find(|node| gone(*node)).expect("it was waited for");
    let then = held(&cluster, node);
    let erased = before[node].iter().find(|replica| !then.contains(replica));
    let erased = *erased.expect("fewer are there");
    cut_power(&cluster, node).await;
    let is_back = held(&cluster, node).contains(&erased);
    cluster.end().await;
    is_back
}

#[test]
fn a_replica_that_was_erased_does_not_come_back() {
    for seed in 0..SEEDS / 4 {
        assert!(
            !simulate(seed, async || lose_power_when_a_replica_goes(seed).await),
            "seed {seed}"
        );
    }
}

#[test]
fn a_node_that_forgets_what_it_has_erased_is_caught() {
    let comes_back = |seed| {
        let story = || simulate(seed, async || lose_power_when_a_replica_goes(seed).await);
        planted::with(Bug::NoTombstone, story)
    };
    assert!((0..SEEDS).any(comes_back));
}

/// Whatever became of it: without the table nobody knows what may be removed.
#[test]
fn a_node_whose_table_of_replicas_is_gone_refuses_to_start_and_removes_nothing() {
    simulate(1, async || {
        let cluster = founded(1).await;
        cluster.crash(1, true);
        let fs = cluster.fs(1);
        let table = std::path::Path::new("/node/replicas.json");
        let kept = crate::util::fs::read_file(&fs, table, 1 << 20).expect("it is there");
        fs.remove(table).expect("a disk that works");
        let refused = cluster.start(1).await.expect_err("what is there is nobody's");
        assert!(refused.message().contains("no replicas.json"), "{refused}");
        cluster.lose_power(1);
        let fs = cluster.fs(1);
        crate::util::fs::replace_file(&fs, "/node".as_ref(), "replicas.json", &kept)
            .expect("a disk that works");
        cluster.start(1).await.expect("all is there as before");
        wait("it takes part", || cluster.arrived().is_ok()).await;
        cluster.end().await;
    });
}
