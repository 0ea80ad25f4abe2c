//! Stories that chance tells too seldom: one fault each, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::access;
use super::cluster::{Cluster, STALE_MAX, Shape};
use super::network::Weather;
use super::run::simulate;
use crate::command::Outcome;
use crate::raft::node::LogLimits;
use crate::raft::types::GroupId;

const GROUP: GroupId = GroupId(0);

/// Within which virtual time everything has to happen.
const PATIENCE: Duration = Duration::from_secs(10);

const SEEDS: u64 = 5;

/// Three nodes with the timeouts that are the defaults.
fn shape() -> Shape {
    Shape {
        nodes: 3,
        groups: 1,
        election_timeout: Duration::from_secs(1),
        heartbeat_interval: Duration::from_millis(150),
        log_keep: 5,
        limits: LogLimits { snapshot_bytes: 4 << 10, log_bytes: 64 << 10 },
        segment_bytes: 8 << 10,
        cache_bytes: 8 << 10,
    }
}

async fn wait(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(1)).await;
    }
}

async fn put(cluster: &Cluster, node: usize, number: u64) {
    let change = access::put("k", number, 0, None);
    let outcome = cluster.propose(node, GROUP, change, None, PATIENCE).await;
    assert!(matches!(outcome, Ok(Outcome::Put { .. })), "{number} at node {node}: {outcome:?}");
}

/// A cluster led by its first node, with a first write.
async fn led_by_first(seed: u64) -> Arc<Cluster> {
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
            let leads = |node: usize| cluster.running(node).expect("up").group(GROUP).is_leader();
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

/// The bound of stale reads holds on a leader that was cut off and does not know that it is none any more, and is over when it is back.
#[test]
fn stale_reads_end_where_nobody_leads() {
    simulate(1, async || {
        let cluster = led_by_first(1).await;
        let allowed =
            |node: usize| cluster.running(node).expect("up").group(GROUP).check_stale().is_ok();
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
