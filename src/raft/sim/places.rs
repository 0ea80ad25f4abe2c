//! Stories of places: replicas come and go on a node while its callers write, and nobody notices.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::access;
use super::cluster::{Cluster, Shape};
use super::run::simulate;
use super::stories::{GROUP, PATIENCE, SEEDS, led_by_first, put, shape, wait};
use crate::command::{Command, Outcome, Proposal};
use crate::raft::message::{Envelope, Refusal, Reply, Request};
use crate::raft::types::GroupId;
use crate::types::Version;
use crate::util::time::Timestamp;

/// Puts of one story.
const PUTS: u64 = 300;

/// Many puts of different keys at `node`, one every millisecond, all of them on their way at once. Their versions, when none failed.
async fn put_many(cluster: &Arc<Cluster>, node: usize, with_ids: bool) -> Vec<Version> {
    let put = |number: u64| {
        let cluster = Arc::clone(cluster);
        async move {
            sleep(Duration::from_millis(number)).await;
            let change = access::put(&format!("key-{number}"), number, 0, None);
            let id = format!("id-{number}");
            let id = with_ids.then_some(id.as_str());
            match cluster.propose(node, GROUP, change, id, PATIENCE).await {
                Ok(Outcome::Put { version }) => version,
                other => panic!("put {number}: {other:?}"),
            }
        }
    };
    join_all((0..PUTS).map(put)).await
}

/// Every one of them was applied, and once: a shard's versions have no gaps.
fn check_versions(versions: &[Version], before: u64) {
    let versions: BTreeSet<_> = versions.iter().map(|version| version.0).collect();
    assert!(versions.into_iter().eq(before + 1..=before + PUTS), "each was applied once");
}

async fn applied(cluster: &Cluster, node: usize) -> u64 {
    let look = |_: &dyn crate::storage::StorageEngine| Ok(());
    cluster.get(node, GROUP, PATIENCE, look).await.expect("it reads");
    cluster.running(node).expect("up").replica(GROUP).state().last_version().0
}

/// A node that has no replica takes writes, wherever the leader is, also after it has moved or crashed.
#[test]
fn a_node_without_a_replica_finds_the_leader() {
    for seed in 0..SEEDS {
        simulate(seed, async || {
            let cluster = led_by_first(seed).await;
            cluster.unseat(2, GROUP);
            put(&cluster, 2, 2).await;
            let second = cluster.name(1).clone();
            cluster.running(2).expect("up").place(GROUP).move_leader(&second).await.expect("moves");
            let asked = Instant::now();
            put(&cluster, 2, 3).await;
            assert!(
                asked.elapsed() < Duration::from_millis(100),
                "seed {seed}: one told the other"
            );
            cluster.crash(0, true);
            cluster.start(0).await.expect("a disk that works");
            wait("the leader leads on", || cluster.leader(GROUP) == Some(1)).await;
            put(&cluster, 2, 4).await;
            cluster.running(1).expect("up").node.hand_over().await;
            cluster.crash(1, true);
            // The other replica is needed for a quorum. What is written here meanwhile waits.
            cluster.seat(2, GROUP);
            put(&cluster, 2, 5).await;
            cluster.end().await;
        });
    }
}

/// A replica comes and goes every few milliseconds under a queue of writes without request ids: none fails, none is applied twice.
#[test]
fn writes_do_not_notice_that_a_replica_comes_and_goes() {
    for seed in 0..SEEDS {
        simulate(seed, async || {
            let cluster = led_by_first(seed).await;
            let before = applied(&cluster, 0).await;
            let writing = tokio::spawn({
                let cluster = Arc::clone(&cluster);
                async move { put_many(&cluster, 2, false).await }
            });
            while !writing.is_finished() {
                cluster.unseat(2, GROUP);
                sleep(Duration::from_millis(7)).await;
                cluster.seat(2, GROUP);
                sleep(Duration::from_millis(5)).await;
            }
            check_versions(&writing.await.expect("all are answered"), before);
            cluster.end().await;
        });
    }
}

/// A replica is exchanged for one on another node, and the leader moves, under a queue of writes.
#[test]
fn writes_follow_a_replica_to_another_node_and_the_leader() {
    for seed in 0..SEEDS {
        simulate(seed, async || {
            let cluster = led_by_first(seed).await;
            let before = applied(&cluster, 0).await;
            cluster.unseat(1, GROUP);
            let writing = tokio::spawn({
                let cluster = Arc::clone(&cluster);
                async move { put_many(&cluster, 2, false).await }
            });
            sleep(Duration::from_millis(50)).await;
            cluster.seat(1, GROUP);
            cluster.unseat(2, GROUP);
            sleep(Duration::from_millis(50)).await;
            let first = cluster.running(0).expect("up");
            let caught_up = || {
                let second = cluster.running(1).expect("up").replica(GROUP).replica();
                let lag = first.replica(GROUP).status().lag;
                lag.get(&second).copied().flatten().is_some_and(|lag| lag < 10)
            };
            wait("the replica has caught up", caught_up).await;
            first.replica(GROUP).hand_over_to(cluster.name(1)).await.expect("it takes over");
            check_versions(&writing.await.expect("all are answered"), before);
            assert_eq!(cluster.leader(GROUP), Some(1));
            cluster.end().await;
        });
    }
}

/// The replica that leads stops with entries on their way, and goes. Nobody knows of those, but each has a request id.
#[test]
fn writes_with_request_ids_survive_that_their_leader_goes_away() {
    for seed in 0..SEEDS {
        simulate(seed, async || {
            let cluster = led_by_first(seed).await;
            let before = applied(&cluster, 0).await;
            let writing = tokio::spawn({
                let cluster = Arc::clone(&cluster);
                async move { put_many(&cluster, 0, true).await }
            });
            sleep(Duration::from_millis(20 + seed)).await;
            let first = cluster.running(0).expect("up");
            first.replica(GROUP).stop().await;
            cluster.unseat(0, GROUP);
            check_versions(&writing.await.expect("all are answered"), before);
            cluster.end().await;
        });
    }
}

/// Five nodes of which two have no replica, one of them the first that a node asks.
#[test]
fn a_node_that_has_no_replica_either_is_followed_by_one_that_has() {
    simulate(1, async || {
        let group = GroupId(1);
        let cluster =
            Cluster::new(Shape { founders: 5, replication_factor: 5, groups: 2, ..shape() }, 1);
        cluster.start_all().await.expect("empty disks that work");
        wait("the second node leads", || cluster.leader(group) == Some(1)).await;
        cluster.unseat(0, group);
        cluster.unseat(4, group);
        let refused = pass_on(&cluster, 0, group).await;
        assert!(matches!(refused, Reply::Refused(Refusal::NotHere(_))), "{refused:?}");
        let asked = Instant::now();
        let change = access::put("k", 1, 0, None);
        let stored = cluster.propose(4, group, change, None, PATIENCE).await;
        assert!(matches!(stored, Ok(Outcome::Put { .. })), "{stored:?}");
        assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
        cluster.end().await;
    });
}

/// What a node replies to a put that another one passes on.
async fn pass_on(cluster: &Cluster, to: usize, group: GroupId) -> Reply {
    let change = access::put("passed-on", 1, 0, None);
    let command = Command { change, request_id: None };
    let proposal = Proposal::encode(Timestamp::from_millis(0), std::iter::once(&command));
    let envelope = Envelope::of_caller(uuid::Uuid::from_u128(7), group);
    let running = cluster.running(to).expect("up");
    running.place(group).handle(&envelope, Request::Propose(proposal)).await
}

/// Forwarded once: who does not lead says who does, and does not ask it.
#[test]
fn what_was_passed_on_goes_no_further() {
    simulate(1, async || {
        let cluster = led_by_first(1).await;
        let before = (applied(&cluster, 0).await, cluster.network.traffic().forwarded);
        let reply = pass_on(&cluster, 1, GROUP).await;
        let leader = Some(cluster.name(0).clone());
        assert_eq!(reply, Reply::Refused(Refusal::NotLeader(leader)));
        // A leader that was cut off learns that it is none; what others passed on to it before is refused, not sent after the new one.
        cluster.network.isolate(0);
        let reply = tokio::spawn({
            let cluster = Arc::clone(&cluster);
            async move { pass_on(&cluster, 0, GROUP).await }
        });
        wait("another one leads", || cluster.leader(GROUP).is_some_and(|node| node != 0)).await;
        cluster.network.heal();
        let reply = reply.await.expect("no panic");
        assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
        sleep(PATIENCE).await;
        let after = (applied(&cluster, 0).await, cluster.network.traffic().forwarded);
        assert_eq!(after, before, "nobody applied it, nobody sent it on");
        cluster.end().await;
    });
}

/// Nobody serves what waits while no node that holds the shard is up: the caller learns that it was not applied.
#[test]
fn without_any_replica_a_write_is_refused_and_says_so() {
    simulate(1, async || {
        let cluster = led_by_first(1).await;
        cluster.unseat(2, GROUP);
        cluster.crash(0, true);
        cluster.crash(1, true);
        let change = access::put("k", 2, 0, None);
        let begun = Instant::now();
        let error = cluster.propose(2, GROUP, change, None, PATIENCE).await;
        let error = error.expect_err("nobody is there");
        assert_eq!(error.reason(), crate::error::Reason::NoLeader, "{error}");
        assert!(begun.elapsed() < PATIENCE, "within its patience");
        cluster.end().await;
    });
}
