//! How long writes stand still when the leader of their shard is gone.
//!
//! One writer for each shard writes all the time, with short deadlines, at whatever node answers. A measurement is the time from the end
//! of the leader to the return of the first write that was called after it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvstore::router::shard_of;
use linz::{Action, Outcome, Value};
use tokio::task::JoinSet;

use crate::client::Client;
use crate::cluster::{Cluster, Setup};
use crate::story::TURN;
use crate::watch::Distribution;
use crate::{PATIENCE, rounds};

/// How long a write of a measurement may take: a client that wants to get on tries the next node then.
const DEADLINE: Duration = Duration::from_millis(300);

/// Time between two tries that did not reach anyone.
const AGAIN_AFTER: Duration = Duration::from_millis(5);

/// Rounds from which on a 99th percentile says something.
const ROUNDS_OF_WORTH: usize = 50;

/// How long writes may stand still at the 99th percentile: a leader that is killed, at the default timeouts, and one that is stopped.
const KILLED_P99_MAX: Duration = Duration::from_secs(3);
const STOPPED_P99_MAX: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_soon_after_a_leader_is_killed() {
    let gaps = measure("failover, kill -9", async |cluster, node| cluster.kill_node(node)).await;
    assert_within(&gaps, KILLED_P99_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_hardly_stop_when_a_leader_is_stopped() {
    let gaps = measure("failover, SIGTERM", async |cluster, node| {
        let status = cluster.stop_node(node).await;
        assert_eq!(status.code(), Some(0));
    });
    assert_within(&gaps.await, STOPPED_P99_MAX);
}

fn assert_within(gaps: &Distribution, p99_max: Duration) {
    if rounds() >= ROUNDS_OF_WORTH {
        assert!(gaps.percentile(99) <= p99_max, "more than {p99_max:?} at p99: {gaps}");
    }
}

/// Ends the node that leads most shards, again and again.
async fn measure(name: &str, mut end: impl AsyncFnMut(&mut Cluster, usize)) -> Distribution {
    let _turn = TURN.lock().await;
    let mut cluster = Cluster::start(&Setup::of(3)).await;
    let mut writers = JoinSet::new();
    let probes: Vec<Arc<Probe>> = (0..cluster.shards).map(|_| Arc::default()).collect();
    for (shard, probe) in (0..).zip(&probes) {
        let client = Client::new(cluster.reached(), shard as usize);
        writers.spawn(write(client, key_of(shard, cluster.shards), Arc::clone(probe)));
    }
    let mut gaps = Vec::new();
    for _ in 0..rounds() {
        for probe in &probes {
            probe.first_after(Instant::now()).await;
        }
        let leaders = cluster.leaders().await;
        let led = |node: usize| leaders.values().filter(|leader| **leader == node).count();
        let node = (0..cluster.nodes.len()).max_by_key(|node| led(*node)).expect("three nodes");
        let at = Instant::now();
        end(&mut cluster, node).await;
        for (shard, _) in leaders.iter().filter(|(_, leader)| **leader == node) {
            let returned = probes[*shard as usize].first_after(at).await;
            gaps.push(returned - at);
        }
        cluster.start_node(node);
        cluster.ready().await;
    }
    let gaps = Distribution::of(gaps);
    println!("{name}: time without a write in the shards that lost their leader, {gaps}");
    gaps
}

/// Any key of a shard.
fn key_of(shard: u32, shards: u32) -> String {
    let mut keys = (0..).map(|number| format!("probe/{number}"));
    keys.find(|key| shard_of(key.as_bytes(), shards).0 == shard).expect("every shard has keys")
}

/// When writes of one shard were called and returned.
#[derive(Default)]
struct Probe {
    writes: Mutex<Vec<(Instant, Instant)>>,
}

/// Writes that a probe remembers; older ones go.
const REMEMBERED: usize = 100_000;

impl Probe {
    fn written(&self, called: Instant) {
        let mut writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        if writes.len() == REMEMBERED {
            writes.clear();
        }
        writes.push((called, Instant::now()));
    }

    /// When the first write returned that was called after `at`; waits for it.
    async fn first_after(&self, at: Instant) -> Instant {
        let deadline = Instant::now() + PATIENCE;
        loop {
            {
                let writes = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
                let first = writes.partition_point(|(called, _)| *called <= at);
                if let Some((_, returned)) = writes.get(first) {
                    return *returned;
                }
            }
            assert!(Instant::now() < deadline, "no write for {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn write(mut client: Client, key: String, probe: Arc<Probe>) {
    for number in 0.. {
        if !client.connect().await {
            tokio::time::sleep(AGAIN_AFTER).await;
            continue;
        }
        let called = Instant::now();
        let (outcome, _) = client.call(&key, Action::put(Value(number)), None, DEADLINE).await;
        match outcome {
            Outcome::Ok(_) => probe.written(called),
            _ => tokio::time::sleep(AGAIN_AFTER).await,
        }
    }
}
