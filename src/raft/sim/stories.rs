//! Stories that chance tells too seldom: one fault each, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::access;
use super::cluster::{Cluster, STALE_MAX, Shape};
use super::network::Weather;
use super::run::simulate;
use crate::command::Outcome;
use crate::raft::node::LogLimits;
use crate::raft::planted::{self, Bug};
use crate::raft::types::GroupId;
use crate::storage::StorageEngine;

pub(super) const GROUP: GroupId = GroupId(0);

/// Within which virtual time everything has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) const SEEDS: u64 = 5;

const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Three nodes with the timeouts that are the defaults.
pub(crate) fn shape() -> Shape {
    Shape {
        founders: 3,
        spares: 0,
        replication_factor: 3,
        groups: 1,
        election_timeout: ELECTION_TIMEOUT,
        heartbeat_interval: Duration::from_millis(150),
        log_keep: 5,
        limits: LogLimits { snapshot_bytes: 4 << 10, log_bytes: 64 << 10 },
        segment_bytes: 8 << 10,
        cache_bytes: 8 << 10,
        large_memtables: false,
        follower_reads: true,
    }
}

pub(crate) async fn wait(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(1)).await;
    }
}

pub(super) async fn put(cluster: &Cluster, node: usize, number: u64) {
    let change = access::put("k", number, 0, None);
    let outcome = cluster.propose(node, GROUP, change, None, PATIENCE).await;
    assert!(matches!(outcome, Ok(Outcome::Put { .. })), "{number} at node {node}: {outcome:?}");
}

/// Runs a story that would not end if something were done again and again without a pause, in no virtual time.
fn ends(story: impl FnOnce() + Send + 'static) {
    let (over, ended) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        story();
        // Whoever waited may have given up.
        let _ = over.send(());
    });
    match ended.recv_timeout(Duration::from_mins(1)) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("virtual time stands still"),
        _ => thread.join().expect("the story holds"),
    }
}

/// A cluster led by its first node, with a first write.
pub(super) async fn led_by_first(seed: u64) -> Arc<Cluster> {
    let cluster = Cluster::new(shape(), seed);
    cluster.start_all().await.expect("empty disks that work");
    wait("the first node leads", || cluster.leader(GROUP) == Some(0)).await;
    put(&cluster, 0, 1).await;
    cluster
}

/// Its signs of life arrive, no answer does: it must not keep the others from electing another one.
#[test]
fn a_leader_that_is_heard_but_hears_nobody_is_replaced() {
    for seed in 0..SEEDS {
        simulate(seed, async || {
            let cluster = led_by_first(seed).await;
            cluster.network.cut(1, 0);
            cluster.network.cut(2, 0);
            let leads = |node: usize| cluster.running(node).expect("up").replica(GROUP).is_leader();
            wait("another node leads", || leads(1) || leads(2)).await;
            put(&cluster, 1, 2).await;
            cluster.end().await;
        });
    }
}

/// A round trip a little below the heartbeat interval: slow, but everything works.
#[test]
fn a_slow_network_commits() {
    for seed in 0..SEEDS {
        simulate(seed, async || {
            let cluster = led_by_first(seed).await;
            cluster.network.set_weather(Weather { delay_ms: 60..=65, lost_of_1000: 0 });
            for (node, number) in [(0, 2), (1, 3), (2, 4)] {
                put(&cluster, node, number).await;
            }
            sleep(PATIENCE).await;
            assert_eq!(cluster.leader(GROUP), Some(0), "seed {seed}: leadership stays");
            put(&cluster, 1, 5).await;
            cluster.end().await;
        });
    }
}

/// Leadership is handed over by a few messages, not by waiting for a timeout, also while callers write.
#[test]
fn a_hand_over_takes_a_few_round_trips() {
    for seed in 0..SEEDS {
        simulate(seed, async || {
            let cluster = led_by_first(seed).await;
            let writing = Arc::clone(&cluster);
            let writes = tokio::spawn(async move {
                let (mut longest, mut last) = (Duration::ZERO, Instant::now());
                for number in 2..500 {
                    put(&writing, 2, number).await;
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
                longest
            });
            sleep(Duration::from_millis(500)).await;
            let first = cluster.running(0).expect("up");
            first.node.hand_over().await;
            let longest = writes.await.expect("every write succeeds");
            assert!(
                longest < Duration::from_millis(100),
                "seed {seed}: {longest:?} without a write"
            );
            cluster.end().await;
        });
    }
}

/// A rolling restart: nodes that were just restarted vote for nobody, but for the one that the leader hands over to.
#[test]
fn a_leader_hands_over_to_nodes_that_were_just_restarted() {
    for seed in 0..SEEDS {
        simulate(seed, async || {
            let cluster = led_by_first(seed).await;
            for node in [1, 2] {
                cluster.crash(node, true);
                cluster.start(node).await.expect("a disk that works");
                put(&cluster, 0, 2).await;
                let last = cluster.running(0).expect("up").replica(GROUP).status().last_index;
                let status = || cluster.running(node).expect("up").replica(GROUP).status();
                wait("it has caught up", || status().applied_index >= last).await;
            }
            let begun = Instant::now();
            cluster.running(0).expect("up").node.hand_over().await;
            let second = cluster.leader(GROUP).expect("somebody leads");
            assert!(second != 0, "seed {seed}: the first has handed over");
            cluster.crash(0, true);
            put(&cluster, second, 3).await;
            // Now both votes are of nodes that were just restarted.
            cluster.running(second).expect("up").node.hand_over().await;
            assert_eq!(cluster.leader(GROUP), Some(3 - second), "seed {seed}");
            assert!(begun.elapsed() < ELECTION_TIMEOUT / 2, "seed {seed}: {:?}", begun.elapsed());
            cluster.end().await;
        });
    }
}

/// Nobody writes for minutes, then every node restarts: the group's time, which memory carried on, was kept for a key that will expire.
#[test]
fn an_idle_group_keeps_its_time_over_a_restart_of_all() {
    simulate(1, async || {
        let cluster = led_by_first(1).await;
        let lasting = access::put_for("lasting", 1, 3_600);
        cluster.propose(0, GROUP, lasting, None, PATIENCE).await.expect("a leader");
        let time = || cluster.running(0).expect("up").replica(GROUP).now();
        let stored = time();
        for _ in 0..180 {
            sleep(Duration::from_secs(1)).await;
            access::tick(&cluster, GROUP).await;
        }
        for node in 0..3 {
            cluster.crash(node, true);
        }
        for node in 0..3 {
            cluster.start(node).await.expect("a disk that works");
        }
        put(&cluster, 0, 2).await;
        let passed = time().saturating_since(stored);
        assert!(passed >= Duration::from_secs(119), "{passed:?} of three minutes");
        cluster.end().await;
    });
}

/// A group that is idle holds the oldest entries of a log that all groups share, few enough to stay behind its snapshot: they go when the log has grown
/// too long.
#[test]
fn an_idle_group_does_not_keep_the_log_from_being_cut() {
    const LOG_BYTES: u64 = 64 << 10;
    let limits = LogLimits { snapshot_bytes: 8 << 10, log_bytes: LOG_BYTES };
    let shape = Shape { groups: 2, log_keep: 50, limits, ..shape() };
    simulate(1, async || {
        let cluster = Cluster::new(shape, 1);
        cluster.start_all().await.expect("empty disks that work");
        let busy = GroupId(1);
        wait("both groups are led", || {
            [GROUP, busy].iter().all(|id| cluster.leader(*id).is_some())
        })
        .await;
        for number in 0..10 {
            put(&cluster, 0, number).await;
        }
        for number in 0..2_000 {
            let change = access::put("k", number, 100, None);
            let outcome = cluster.propose(1, busy, change, None, PATIENCE).await;
            assert!(outcome.is_ok(), "{number}: {outcome:?}");
        }
        let bytes = |node: usize| cluster.running(node).expect("up").log.status().wal.disk_bytes;
        // The segment that is written, one made ahead, and what came since the last look.
        let most = LOG_BYTES + (32 << 10);
        wait("the log is cut on all nodes", || (0..3).all(|node| bytes(node) <= most)).await;
        cluster.end().await;
    });
}

/// The bound of stale reads holds on a leader that was cut off and does not know that it is none any more, and is over when it is back.
#[test]
fn stale_reads_end_where_nobody_leads() {
    simulate(1, async || {
        let cluster = led_by_first(1).await;
        let allowed =
            |node: usize| cluster.running(node).expect("up").replica(GROUP).check_stale().is_ok();
        sleep(STALE_MAX * 2).await;
        assert!((0..3).all(allowed), "all hear of a leader, the leader of a quorum");
        cluster.network.isolate(0);
        sleep(STALE_MAX / 2).await;
        assert!(allowed(0), "not that long yet");
        sleep(STALE_MAX).await;
        assert!(!allowed(0) && allowed(1) && allowed(2));
        cluster.network.heal();
        wait("it hears of the new leader", || allowed(0)).await;
        cluster.end().await;
    });
}

/// A leader is cut off from one follower; the other one, without which there is no quorum, answers it, restarts, and is asked for its vote while the leader is
/// cut off from both. When the last read by lease was, and when the new leader had committed something.
async fn restart_the_follower_that_answered(seed: u64) -> (Instant, Instant) {
    let cluster = led_by_first(seed).await;
    cluster.network.isolate(1);
    // Long enough for the one that is cut off to stand for election as soon as it can.
    sleep(ELECTION_TIMEOUT * 3).await;
    cluster.crash(2, true);
    cluster.start(2).await.expect("a disk that works");
    cluster.network.heal();
    cluster.network.isolate(0);
    let old = cluster.running(0).expect("it is up");
    let deadline = Instant::now() + PATIENCE;
    let mut last_read = None;
    let mut replaced_at = None;
    while replaced_at.is_none_or(|at: Instant| at.elapsed() < ELECTION_TIMEOUT * 3) {
        assert!(Instant::now() < deadline, "seed {seed}: nobody takes over");
        // Nobody answers it, so that only a lease can be confirmed as fast.
        let read = timeout(Duration::from_millis(1), old.replica(GROUP).confirm_by_lease()).await;
        if read.is_ok_and(|read| read.is_ok()) {
            last_read = Some(Instant::now());
        }
        if replaced_at.is_none() && [1, 2].iter().any(|node| serves(&cluster, *node)) {
            replaced_at = Some(Instant::now());
        }
        sleep(Duration::from_millis(1)).await;
    }
    cluster.end().await;
    let last_read = last_read.expect("the lease holds for a while");
    (last_read, replaced_at.expect("the loop ends with it"))
}

/// Whether the node leads and its first entry is applied, so that it answers clients.
fn serves(cluster: &Cluster, node: usize) -> bool {
    let running = cluster.running(node).expect("it is up");
    let group = running.replica(GROUP);
    let term = group.metrics().current_term;
    let applied = group.state().applied();
    group.is_leader() && applied.is_some_and(|log_id| log_id.committed_leader_id().term == term)
}

/// The boot quarantine: a follower that answered the leader just before it restarted does not vote for another one while the leader trusts its lease.
#[test]
fn no_read_by_lease_succeeds_after_a_new_leader_has_committed() {
    for seed in 0..SEEDS {
        let (last_read, replaced_at) =
            simulate(seed, async || restart_the_follower_that_answered(seed).await);
        assert!(last_read < replaced_at, "seed {seed}: read {:?} after", last_read - replaced_at);
    }
}

#[test]
fn without_the_quarantine_reads_by_lease_are_found_to_be_old() {
    let is_old = |seed: &u64| {
        let story = || simulate(*seed, async || restart_the_follower_that_answered(*seed).await);
        let (last_read, replaced_at) = planted::with(Bug::NoQuarantine, story);
        last_read > replaced_at
    };
    assert!((0..SEEDS * 4).any(|seed| is_old(&seed)));
}

/// A leader that hands over refuses commands until the next one is elected, and takes itself for the leader meanwhile.
#[test]
fn writes_wait_while_leadership_is_handed_to_a_node_that_is_cut_off() {
    ends(|| {
        for seed in 0..SEEDS {
            simulate(seed, async || {
                let cluster = led_by_first(seed).await;
                cluster.network.isolate(1);
                let old = cluster.running(0).expect("it is up");
                let name = cluster.name(1).clone();
                let moving = tokio::spawn(async move {
                    // Nobody takes over.
                    let _ = old.replica(GROUP).hand_over_to(&name).await;
                });
                put(&cluster, 0, 2).await;
                moving.await.expect("no panic");
                cluster.end().await;
            });
        }
    });
}

/// The third node is elected by the second one, which then loses power while the third is cut off. The second may not elect another one in the same term: what
/// that commits would be overwritten. Whether at the end everything works and the write that was acknowledged is there.
async fn restart_the_follower_that_voted(seed: u64) -> Option<bool> {
    let cluster = led_by_first(seed).await;
    cluster.set_sync_ms_max(1, 2_000);
    sleep(Duration::from_millis(10)).await;
    cluster.crash(0, true);
    let leads = |node: usize| {
        let running = cluster.running(node);
        running.is_some_and(|running| running.replica(GROUP).is_leader())
    };
    let deadline = Instant::now() + PATIENCE;
    while !leads(2) {
        if leads(1) || Instant::now() > deadline {
            // Another story.
            cluster.end().await;
            return None;
        }
        sleep(Duration::from_millis(1)).await;
    }
    cluster.network.isolate(2);
    cluster.crash(1, false);
    cluster.set_sync_ms_max(1, 3);
    for node in [0, 1] {
        cluster.start(node).await.expect("a disk that works");
    }
    wait("another node leads", || leads(0) || leads(1)).await;
    put(&cluster, 0, 2).await;
    cluster.network.heal();
    // Whatever the third one still believes has been settled.
    sleep(PATIENCE).await;
    let look = |engine: &dyn StorageEngine| access::read(engine, "k");
    let found = cluster.get(0, GROUP, PATIENCE, look).await;
    cluster.end().await;
    Some(found.is_ok_and(|found| found.is_some_and(|(number, _)| number == 2)))
}

#[test]
fn a_vote_survives_a_power_cut() {
    let told = |seed| simulate(seed, async || restart_the_follower_that_voted(seed).await);
    // One seed of thirty elects the third node.
    let there: Vec<_> = (0..SEEDS * 60).filter_map(told).take(3).collect();
    assert!(!there.is_empty() && there.iter().all(|there| *there), "{there:?}");
}

#[test]
fn a_vote_that_is_not_durable_is_caught() {
    let told = |seed| {
        let story = || simulate(seed, async || restart_the_follower_that_voted(seed).await);
        planted::with(Bug::UnsyncedVote, story)
    };
    assert!((0..SEEDS * 4).filter_map(told).any(|there| !there));
}
