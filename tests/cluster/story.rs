//! What every run of a cluster has in common: load, faults under load, healing, and then the questions that decide.
//!
//! 1. The history of all clients is linearizable.
//! 2. Every acknowledged write of a key that was written once is there, and none that certainly failed.
//! 3. All replicas of a shard hold the same.
//!
//! A run without enough work before its fault, or whose fault did not take effect, is void: it fails, because it proves nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstore::proto::v1::kv_service_client::KvServiceClient;
use kvstore::proto::v1::{BatchGetRequest, Consistency, Item, item};
use kvstore::router::shard_of;
use linz::{Action, Answer, Outcome, STATES_MAX, Value, Verdict, Version, check};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::sync::Mutex;

use crate::client::{Client, DEADLINE, parse};
use crate::cluster::{Cluster, Setup};
use crate::load::{Fresh, Load, Shared};
use crate::process::channel;
use crate::watch::Leaders;
use crate::{PATIENCE, Void, seconds, seed};

/// One cluster at a time: they would take each other's cores and time out.
pub(crate) static TURN: Mutex<()> = Mutex::const_new(());

/// Operations before the first fault and between two: less is no load.
pub(crate) const OPERATIONS_BETWEEN: u64 = 100;

/// Keys that are asked for at once.
const KEYS_AT_ONCE: usize = 500;

/// What a fault is given.
pub(crate) struct Scene<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) load: &'a mut Load,
    pub(crate) random: &'a mut SmallRng,
}

/// What went wrong.
pub(crate) type Wrong = String;

/// Runs `fault` again and again under load, for as long as the environment says and at least once, and asks the questions. Gives back
/// what the clients shared.
pub(crate) async fn run(
    name: &str,
    setup: Setup,
    fault: impl AsyncFnMut(&mut Scene<'_>) -> Result<(), Void>,
) -> Arc<Shared> {
    let _turn = TURN.lock().await;
    let mut cluster = Cluster::start(&setup).await;
    match act(name, &mut cluster, fault).await {
        Ok(shared) => shared,
        // With the cluster still there, so that its logs are told.
        Err(wrong) => panic!("{name}: {wrong}"),
    }
}

/// As [`run`], for a cluster of which the questions must find something.
pub(crate) async fn run_wrong(
    name: &str,
    setup: Setup,
    fault: impl AsyncFnMut(&mut Scene<'_>) -> Result<(), Void>,
) -> Wrong {
    let _turn = TURN.lock().await;
    let mut cluster = Cluster::start(&setup).await;
    let wrong = act(name, &mut cluster, fault).await.err();
    wrong.unwrap_or_else(|| panic!("{name}: nothing was found"))
}

async fn act(
    name: &str,
    cluster: &mut Cluster,
    mut fault: impl AsyncFnMut(&mut Scene<'_>) -> Result<(), Void>,
) -> Result<Arc<Shared>, Wrong> {
    let (seed, seconds) = (seed(), seconds());
    println!(
        "{name}: KVSTORE_TEST_CLUSTER_SEED={seed} KVSTORE_TEST_CLUSTER_SECONDS={}",
        seconds.as_secs()
    );
    let leaders = Leaders::watch(cluster.reached());
    let mut load = Load::start(&cluster.reached(), cluster.shards, seed);
    let mut random = SmallRng::seed_from_u64(seed);
    let void = |Void(why)| format!("this run is void: {why}");
    let end = Instant::now() + seconds;
    let mut rounds = 0;
    while rounds == 0 || Instant::now() < end {
        load.goes_on(OPERATIONS_BETWEEN).await.map_err(void)?;
        let mut scene = Scene { cluster: &mut *cluster, load: &mut load, random: &mut random };
        fault(&mut scene).await.map_err(void)?;
        rounds += 1;
    }
    cluster.heal().await;
    let after = load.goes_on(OPERATIONS_BETWEEN).await;
    after.map_err(|Void(why)| format!("no service after all faults are healed: {why}"))?;
    let changes = leaders.changes();
    let shared = load.stop().await;
    let gaps: Vec<_> = shared.gaps.longest().iter().map(Duration::as_millis).collect();
    println!(
        "{name}: {rounds} rounds, {:?}, {} fresh keys, {changes} changes of leaders, longest time without a write in each shard {gaps:?} ms",
        shared.history.counts(),
        shared.fresh().len(),
    );
    println!("{name}: calls without an answer: {:?}", shared.endings());
    for failure in shared.failures() {
        println!("{name}: a repeated operation failed: {failure}");
    }
    questions(cluster, &shared).await?;
    Ok(shared)
}

/// What has to hold of a cluster that is healed and quiet.
async fn questions(cluster: &Cluster, shared: &Shared) -> Result<(), Wrong> {
    let keys: Vec<String> = shared.history.keys().into_iter().map(|(key, _)| key).collect();
    for key in &keys {
        read_at_last(cluster, shared, key).await?;
    }
    match check(&shared.history, STATES_MAX) {
        Verdict::Linearizable => {}
        Verdict::Violation(violation) => return Err(violation.to_string()),
        Verdict::Inconclusive(inconclusive) => return Err(inconclusive.to_string()),
    }
    let copies = equal_copies(cluster, shared, &keys).await?;
    wrong_fresh(&shared.fresh(), &copies).map_or(Ok(()), Err)
}

/// The first key of those that were written once that is not as it must be.
fn wrong_fresh(fresh: &Fresh, held: &Held) -> Option<Wrong> {
    fresh.iter().find_map(|(key, (value, outcome))| {
        let found = held.get(key);
        let (right, what) = match outcome {
            Outcome::Ok(Answer::Stored(version)) => {
                (found == Some(&(*value, *version)), "an acknowledged write is lost")
            }
            Outcome::Failed => (found.is_none(), "a write that failed is there"),
            _ => (found.is_none_or(|(found, _)| found == value), "nobody wrote this"),
        };
        let wrong = || format!("{what}: put {value} of {key}: {outcome}, and there is {found:?}");
        (!right).then(wrong)
    })
}

/// Adds a last read of a key to the history.
async fn read_at_last(cluster: &Cluster, shared: &Shared, key: &str) -> Result<(), Wrong> {
    let mut client = Client::new(cluster.reached(), 0);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if client.connect().await {
            let Some(call) = shared.history.call(u32::MAX, key, Action::Get, shared.now()) else {
                return Err("the history is full".to_owned());
            };
            let (outcome, status) = client.call(key, Action::Get, None, DEADLINE).await;
            shared.history.returns(call, outcome, shared.now());
            if matches!(outcome, Outcome::Ok(_)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{key} cannot be read when all faults are healed: {status:?}"));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Keys with value and version.
type Held = BTreeMap<String, (Value, Version)>;

/// What the nodes hold, once the replicas of each shard hold the same.
async fn equal_copies(cluster: &Cluster, shared: &Shared, keys: &[String]) -> Result<Held, Wrong> {
    let mut by_shard: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for key in keys.iter().cloned().chain(shared.fresh().into_keys()) {
        by_shard.entry(shard_of(key.as_bytes(), cluster.shards).0).or_default().push(key);
    }
    let mut held = Held::new();
    for (shard, keys) in by_shard {
        held.extend(equal_copies_of(cluster, shard, &keys).await?);
    }
    Ok(held)
}

/// What the replicas of a shard hold, once they hold the same.
async fn equal_copies_of(cluster: &Cluster, shard: u32, keys: &[String]) -> Result<Held, Wrong> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut copies = Vec::new();
        for address in cluster.holders(shard).await {
            copies.push(copy(address, keys).await);
        }
        if let Some(Ok(first)) = copies.first()
            && copies.iter().all(|copy| copy.as_ref() == Ok(first))
        {
            return Ok(first.clone());
        }
        if Instant::now() > deadline {
            return Err(format!("shard {shard}: {}", difference(&copies)));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The node's own copy of these keys, without asking others.
async fn copy(address: SocketAddr, keys: &[String]) -> Result<Held, String> {
    let channel = channel(address).await.ok_or_else(|| format!("{address} does not listen"))?;
    let mut client = KvServiceClient::new(channel);
    let mut copy = Held::new();
    for keys in keys.chunks(KEYS_AT_ONCE) {
        let consistency = Consistency::Stale.into();
        let request = BatchGetRequest { keys: keys.to_vec(), consistency };
        let found = client.batch_get(request).await.map_err(|status| status.to_string())?;
        copy.extend(found.into_inner().items.into_iter().map(entry));
    }
    Ok(copy)
}

fn entry(item: Item) -> (String, (Value, Version)) {
    let value = match item.content {
        Some(item::Content::Value(text)) => parse(&text),
        _ => parse(""),
    };
    (item.key, (value, Version(item.version)))
}

/// In a few words, how copies differ.
fn difference(copies: &[Result<Held, String>]) -> String {
    let failed = copies.iter().filter_map(|copy| copy.as_ref().err());
    let mut lines: Vec<String> =
        failed.map(|why| format!("a node cannot be read: {why}")).collect();
    let copies: Vec<_> = copies.iter().flatten().collect();
    let keys: std::collections::BTreeSet<_> = copies.iter().flat_map(|copy| copy.keys()).collect();
    let differs =
        |key: &&&String| copies.iter().any(|copy| copy.get(**key) != copies[0].get(**key));
    lines.extend(keys.iter().filter(differs).take(10).map(|key| {
        let held: Vec<_> = copies.iter().map(|copy| copy.get(*key)).collect();
        format!("{key}: {held:?}")
    }));
    format!("its replicas hold different data after {PATIENCE:?}:\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(outcome: Outcome, found: Option<(u64, u64)>) -> bool {
        let fresh = Fresh::from([("k".to_owned(), (Value(1), outcome))]);
        let found =
            found.map(|(value, version)| ("k".to_owned(), (Value(value), Version(version))));
        wrong_fresh(&fresh, &found.into_iter().collect()).is_some()
    }

    #[test]
    fn keys_that_were_written_once_are_judged_by_how_the_write_ended() {
        let stored = Outcome::Ok(Answer::Stored(Version(5)));
        assert!(!wrong(stored, Some((1, 5))));
        assert!(wrong(stored, None) && wrong(stored, Some((1, 6))) && wrong(stored, Some((2, 5))));
        assert!(!wrong(Outcome::Failed, None));
        assert!(wrong(Outcome::Failed, Some((1, 5))));
        assert!(!wrong(Outcome::Unknown, None) && !wrong(Outcome::Unknown, Some((1, 5))));
        assert!(wrong(Outcome::Unknown, Some((2, 5))));
    }

    #[test]
    fn nodes_that_differ_are_told_by_key() {
        let held = |version| Held::from([("k".to_owned(), (Value(1), Version(version)))]);
        let told = difference(&[Ok(held(5)), Ok(held(5)), Ok(Held::new())]);
        assert!(told.contains("k: [Some") && told.contains("None]"), "{told}");
        let told = difference(&[Ok(held(5)), Err("it is gone".to_owned())]);
        assert!(told.contains("it is gone") && !told.contains("k:"), "{told}");
    }
}
