//! Batches over several nodes of which a part fails: the error names the keys that may be stored and those that are not, and all others are stored.

use super::nodes::{Nodes, wide, within};
use super::*;
use crate::raft::sim::{NodeIndex, PATIENCE, Weather, simulate, wait};
use crate::raft::types::GroupId;

const SEEDS: u64 = 3;

/// What an error says of keys.
fn named(error: &Error, list: &str) -> Vec<String> {
    let found = error.metadata().iter().find(|(name, _)| *name == list);
    let found = found.map(|(_, json)| serde_json::from_str(json).expect("a list in JSON"));
    let mut keys: Vec<String> = found.unwrap_or_default();
    keys.sort();
    keys
}

fn fact(error: &Error, name: &str) -> Option<String> {
    let found = error.metadata().iter().find(|(fact, _)| *fact == name);
    found.map(|(_, value)| value.clone())
}

/// The keys of the batch that are in `shards`.
fn of_shards(nodes: &Nodes, keys: &[Key], shards: &[ShardId]) -> Vec<String> {
    let count = nodes.cluster.shape.groups;
    let within = |key: &&Key| shards.contains(&shard_of(key.as_bytes(), count));
    let mut keys: Vec<_> = keys.iter().filter(within).map(|key| key.as_str().to_owned()).collect();
    keys.sort();
    keys
}

/// Which of the keys a node finds, reading until it can.
async fn stored(nodes: &Nodes, node: NodeIndex, keys: &[Key]) -> Vec<String> {
    let mut found = Vec::new();
    for key in keys {
        if nodes.get(node, key).await.expect("a quorum is up").is_some() {
            found.push(key.as_str().to_owned());
        }
    }
    found.sort();
    found
}

/// Three keys for each shard.
fn batch(nodes: &Nodes, name: &str) -> Vec<Key> {
    let of =
        |number| nodes.shards().map(move |shard| nodes.key_in(shard, &format!("{name}/{number}")));
    (0..3).flat_map(of).collect()
}

fn entries(keys: &[Key]) -> Vec<(Key, Value)> {
    keys.iter().map(|key| (key.clone(), json("1"))).collect()
}

/// A shard has gone from everywhere, the leader of others crashes with the command on its way; the rest is well, or there is no rest.
#[test]
fn a_batch_that_is_torn_names_what_is_unknown_and_what_is_not_applied() {
    for seed in 0..SEEDS {
        let with_rest = seed % 2 == 0;
        simulate(seed, async || {
            let nodes = Nodes::start(wide(), seed).await;
            let gone = ShardId(0);
            // Whoever crashes is neither the caller's node nor needed by it for the shard that has gone.
            let asker = nodes.stranger(gone);
            let crashes = nodes.all().find(|node| {
                let leads = |shard: ShardId| shard != gone && nodes.leader(shard) == *node;
                *node != asker && nodes.shards().any(leads)
            });
            let crashes = crashes.expect("others lead as well");
            let lost: Vec<_> = nodes
                .shards()
                .filter(|shard| *shard != gone && nodes.leader(*shard) == crashes)
                .collect();
            // The node hears who leads, so that each part goes to its leader at once.
            nodes.store(asker, entries(&batch(&nodes, "before"))).await;
            for holder in nodes.cluster.holders(GroupId(gone.0)) {
                nodes.unseat(holder, gone);
            }
            let mut keys = batch(&nodes, "batch");
            let count = nodes.cluster.shape.groups;
            keys.retain(|key| {
                let shard = shard_of(key.as_bytes(), count);
                with_rest || shard == gone || lost.contains(&shard)
            });
            nodes.cluster.network.set_weather(Weather { delay_ms: 20..=20, lost_of_1000: 0 });
            let router = nodes.router(asker);
            let putting = router.batch_put(entries(&keys), None, None, within(PATIENCE));
            let putting = tokio::spawn(putting.expect("there is room"));
            // The commands have arrived, and those of nobody else have.
            tokio::time::sleep(Duration::from_millis(30)).await;
            nodes.cluster.crash(crashes, true);
            let error = putting.await.expect("no panic").expect_err("not all of it is stored");
            nodes.cluster.network.set_weather(Weather::FINE);

            assert_eq!(error.reason(), Reason::OutcomeUnknown, "{error}");
            let unknown = of_shards(&nodes, &keys, &lost);
            let not_applied = of_shards(&nodes, &keys, &[gone]);
            assert!(!unknown.is_empty() && !not_applied.is_empty(), "seed {seed}");
            assert_eq!(unknown.len() + not_applied.len() < keys.len(), with_rest, "seed {seed}");
            assert_eq!(named(&error, "unknown_keys"), unknown, "{error}");
            assert_eq!(named(&error, "not_applied_keys"), not_applied, "{error}");
            assert_eq!(fact(&error, "unknown"), Some(unknown.len().to_string()));
            assert_eq!(fact(&error, "not_applied"), Some(not_applied.len().to_string()));

            for holder in nodes.cluster.holders(GroupId(gone.0)) {
                nodes.seat(holder, gone);
            }
            let led = || nodes.cluster.groups().all(|group| nodes.cluster.leader(group).is_some());
            wait("every shard is led again", led).await;
            let found = stored(&nodes, asker, &keys).await;
            for key in &keys {
                let key = key.as_str().to_owned();
                if not_applied.contains(&key) {
                    assert!(!found.contains(&key), "seed {seed}: {key} is not applied");
                } else if !unknown.contains(&key) {
                    assert!(found.contains(&key), "seed {seed}: {key} is stored");
                }
            }
            nodes.end().await;
        });
    }
}

/// Nothing of it was applied: the caller may do it again as it likes.
#[test]
fn a_batch_that_nobody_took_is_not_applied() {
    simulate(1, async || {
        let nodes = Nodes::start(wide(), 1).await;
        let keys = batch(&nodes, "batch");
        for shard in nodes.shards() {
            for holder in nodes.cluster.holders(GroupId(shard.0)) {
                nodes.unseat(holder, shard);
            }
        }
        let put = nodes.router(2).batch_put(entries(&keys), None, None, within(PATIENCE));
        let error = put.expect("there is room").await.expect_err("nobody takes it");
        assert_eq!(error.reason(), Reason::NoLeader, "{error}");
        assert!(named(&error, "unknown_keys").is_empty());
        for shard in nodes.shards() {
            for holder in nodes.cluster.holders(GroupId(shard.0)) {
                nodes.seat(holder, shard);
            }
        }
        assert!(stored(&nodes, 2, &keys).await.is_empty());
        nodes.end().await;
    });
}

/// As many keys as there may be: an error names the first of them, and travels in a header.
#[test]
fn an_error_names_as_many_keys_as_it_may() {
    simulate(1, async || {
        let nodes = Nodes::start(wide(), 1).await;
        let gone = [ShardId(0), ShardId(1)];
        for shard in gone {
            for holder in nodes.cluster.holders(GroupId(shard.0)) {
                nodes.unseat(holder, shard);
            }
        }
        for (length, most) in [(1, 20), (100, 9), (2_000, 0)] {
            let name = |number: u32| key(&format!("{number:03}/{}", "x".repeat(length)));
            let keys: Vec<_> = (0..300).map(name).collect();
            let put = nodes.router(0).batch_put(entries(&keys), None, None, within(PATIENCE));
            let error = put.expect("there is room").await.expect_err("not all of it is stored");
            let missing = gone.map(|shard| of_shards(&nodes, &keys, &[shard])).concat();
            assert_eq!(fact(&error, "not_applied"), Some(missing.len().to_string()));
            assert_eq!(fact(&error, "unknown"), None);
            assert_eq!(named(&error, "not_applied_keys"), missing[..most], "the first of them");
            let stored = 300 - missing.len();
            assert!(error.message().contains(&format!("{stored} keys are stored")), "{error}");
        }
        nodes.end().await;
    });
}
