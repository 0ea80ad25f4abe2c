//! Reads at nodes that hold no replica of a shard: whom they ask, in which order, how long, and what comes of it when nobody serves.

use super::nodes::{Nodes, wide, within};
use super::*;
use crate::error::Kind;
use crate::raft::sim::{NodeIndex, PATIENCE, Shape, Weather, simulate, wait};
use crate::raft::types::GroupId;

const SEEDS: u64 = 2;

const SHARD: ShardId = ShardId(1);

/// Longest a question and its answer take, and a round to a quorum before it.
const SOON: Duration = Duration::from_millis(50);

/// How long a node waits for the first node it asks: two election timeouts.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// Five nodes that hold `keys`, one for each shard; a node that has no replica of the shard.
async fn begin(shape: Shape, seed: u64) -> (Nodes, Vec<Key>, NodeIndex) {
    let nodes = Nodes::start(shape, seed).await;
    let keys = nodes.one_each("k").await;
    let stranger = nodes.stranger(SHARD);
    nodes.heard();
    (nodes, keys, stranger)
}

/// Tells a story of such nodes for each seed.
fn story(shape: impl Fn() -> Shape, tell: impl AsyncFn(&Nodes, &[Key], NodeIndex)) {
    for seed in 0..SEEDS {
        simulate(seed, async || {
            let (nodes, keys, stranger) = begin(shape(), seed).await;
            tell(&nodes, &keys, stranger).await;
            nodes.end().await;
        });
    }
}

fn key_of(keys: &[Key]) -> &Key {
    &keys[SHARD.0 as usize]
}

/// The followers of the shard, in the order in which `node` asks them.
fn followers(nodes: &Nodes, node: NodeIndex) -> Vec<NodeIndex> {
    let leader = nodes.leader(SHARD);
    nodes.asked_by(node, SHARD).into_iter().filter(|node| *node != leader).collect()
}

#[test]
fn what_is_here_is_read_here_and_the_rest_of_each_node_once() {
    story(wide, async |nodes, keys, _| {
        for node in nodes.all() {
            let found = nodes.get_all(node, keys).await.expect("all are up");
            assert_eq!(found.len(), keys.len());
            let heard = nodes.heard();
            let is_here = |shard: ShardId| nodes.cluster.holders(GroupId(shard.0)).contains(&node);
            let mut asked: Vec<_> =
                heard.iter().flat_map(|heard| heard.shards.iter().copied()).collect();
            asked.sort();
            let elsewhere: Vec<_> = nodes.shards().filter(|shard| !is_here(*shard)).collect();
            assert_eq!(asked, elsewhere, "node {node}");
            let mut whom: Vec<_> = heard.iter().map(|heard| heard.node).collect();
            whom.sort_unstable();
            whom.dedup();
            assert_eq!(whom.len(), heard.len(), "node {node} asks each once: {heard:?}");
        }
    });
}

#[test]
fn a_node_that_has_lost_its_replica_is_followed_by_the_next_that_holds_the_shard() {
    story(wide, async |nodes, keys, stranger| {
        let order = nodes.asked_by(stranger, SHARD);
        // The last one leads, so that the others are free to go.
        nodes.move_leader(SHARD, order[2]).await;
        for gone in 0..=2 {
            let begun = Instant::now();
            let found = nodes.get(stranger, key_of(keys)).await.expect("one is left");
            assert_eq!(found.as_deref(), Some(key_of(keys).as_str()));
            assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
            let heard = nodes.heard();
            assert_eq!(heard.len(), gone + 1, "each once: {heard:?}");
            let refused = heard.iter().filter(|heard| heard.refused == [SHARD]).count();
            assert_eq!(refused, gone, "{heard:?}");
            if gone < 2 {
                let served = heard.last().expect("one has answered").node;
                nodes.unseat(served, SHARD);
                if gone == 1 {
                    // Two of three replicas are gone: nothing can be confirmed.
                    break;
                }
            }
        }
    });
}

#[test]
fn whoever_is_named_as_the_leader_is_asked_first_and_then_remembered() {
    let shape = || Shape { follower_reads: false, ..wide() };
    story(shape, async |nodes, keys, stranger| {
        for round in 0..4 {
            // Somebody else leads from now on; the one who did knows who.
            let known = nodes.asked_by(stranger, SHARD)[0];
            let leader = nodes.leader(SHARD);
            if round > 0 {
                let next = followers(nodes, stranger);
                nodes.move_leader(SHARD, next[round % 2]).await;
                wait("the one before has heard of it", || {
                    let before = nodes.cluster.running(leader).expect("up");
                    let heard = before.place(GroupId(SHARD.0)).leader_elsewhere();
                    heard.is_some_and(|name| nodes.index(&name) == nodes.leader(SHARD))
                })
                .await;
            }
            let leader = nodes.leader(SHARD);
            let expected = if known == leader { vec![leader] } else { vec![known, leader] };
            for expected in [expected, vec![leader]] {
                nodes.get(stranger, key_of(keys)).await.expect("the leader is up");
                assert_eq!(nodes.heard_by(), expected, "round {round}");
            }
        }
    });
}

/// The leader crashes: it is asked in vain, and then the others, until one has been found.
#[test]
fn a_leader_that_does_not_serve_any_more_is_forgotten() {
    simulate(1, async || {
        let (nodes, keys, stranger) = begin(Shape { follower_reads: false, ..wide() }, 1).await;
        nodes.get(stranger, key_of(&keys)).await.expect("the leader is up");
        nodes.heard();
        let leader = nodes.leader(SHARD);
        assert_eq!(nodes.asked_by(stranger, SHARD)[0], leader, "it led last");
        nodes.cluster.crash(leader, true);
        let led = || nodes.cluster.leader(GroupId(SHARD.0)).is_some();
        wait("another one leads", led).await;
        nodes.get(stranger, key_of(&keys)).await.expect("another one leads");
        let heard = nodes.heard_by();
        assert!((1..=2).contains(&heard.len()), "{heard:?}");
        assert_eq!(heard.last(), Some(&nodes.leader(SHARD)));
        nodes.get(stranger, key_of(&keys)).await.expect("it still leads");
        assert_eq!(nodes.heard_by(), heard[heard.len() - 1..], "without asking the others before");
        nodes.end().await;
    });
}

/// In rounds: everybody once, then a pause, then everybody again; until the deadline.
#[test]
fn while_nobody_serves_all_are_asked_in_rounds_until_the_deadline() {
    story(wide, async |nodes, keys, stranger| {
        let holders = nodes.cluster.holders(GroupId(SHARD.0));
        for holder in &holders {
            nodes.unseat(*holder, SHARD);
        }
        let limit = Duration::from_millis(700);
        let begun = Instant::now();
        let (key, fresh) = (key_of(keys), Freshness::Linearizable);
        let read = nodes.get_within(stranger, key, fresh, limit).await;
        let error = read.expect_err("nobody serves it");
        assert_eq!(error.reason(), Reason::NoLeader, "{error}");
        assert!(error.message().contains("shard-1"), "{error}");
        assert_eq!(begun.elapsed(), limit, "not before, not after");
        let heard = nodes.heard();
        assert!(heard.len() > 3 * 10, "again and again: {}", heard.len());
        assert!(heard.len() <= 3 * 70, "with a pause: {}", heard.len());
        for round in heard.chunks(3) {
            let mut asked: Vec<_> = round.iter().map(|heard| heard.node).collect();
            asked.sort_unstable();
            if round.len() == 3 {
                assert_eq!(asked, holders, "each once in a round");
            }
        }
        for (last, first) in heard.iter().skip(2).step_by(3).zip(heard.iter().skip(3).step_by(3)) {
            assert!(first.at - last.at >= Duration::from_millis(10), "a pause between rounds");
        }
    });
}

#[test]
fn a_read_is_answered_as_soon_as_somebody_serves_again() {
    story(wide, async |nodes, keys, stranger| {
        let holders = nodes.cluster.holders(GroupId(SHARD.0));
        for holder in &holders {
            nodes.unseat(*holder, SHARD);
        }
        let router = nodes.router(stranger);
        let key = key_of(keys).clone();
        let read = tokio::spawn(async move {
            let deadline = within(PATIENCE);
            router.get(key.as_bytes(), Freshness::Stale, deadline).await
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!read.is_finished(), "nobody serves it");
        nodes.seat(holders[1], SHARD);
        let begun = Instant::now();
        let found = read.await.expect("no panic").expect("one serves it");
        assert_eq!(text(&found.expect("it is there").value), key_of(keys).as_str());
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    });
}

/// The words of the last one that was heard of the shard are what the caller hears, and not those about another shard.
#[test]
fn the_error_is_what_was_heard_last_of_the_shard_that_nobody_serves() {
    story(wide, async |nodes, keys, stranger| {
        let holders = nodes.cluster.holders(GroupId(SHARD.0));
        for holder in &holders {
            nodes.cluster.crash(*holder, true);
        }
        let limit = Duration::from_millis(500);
        let begun = Instant::now();
        let read = nodes.get_within(stranger, key_of(keys), Freshness::Stale, limit).await;
        let error = read.expect_err("all are down");
        assert_eq!(error.reason(), Reason::NoLeader);
        assert!(error.message().contains("shard-1"), "{error}");
        assert!(error.message().contains("does not answer"), "{error}");
        assert_eq!(begun.elapsed(), limit);
    });
}

#[test]
fn an_error_about_a_shard_that_was_served_later_is_not_the_callers() {
    for seed in 0..SEEDS {
        simulate(seed, async || {
            let nodes = Nodes::start(wide(), seed).await;
            let keys = nodes.one_each("k").await;
            // A node and two shards that it does not hold: of the first one, the node that is asked first is down; the other one has gone from all its nodes.
            let pairs = nodes.all().flat_map(|node| nodes.shards().map(move |shard| (node, shard)));
            let is_here = |node: NodeIndex, shard: ShardId| {
                nodes.cluster.holders(GroupId(shard.0)).contains(&node)
            };
            let (stranger, down, silent, gone) = pairs
                .flat_map(|(node, first)| nodes.shards().map(move |second| (node, first, second)))
                .filter(|&(node, first, second)| {
                    first != second && !is_here(node, first) && !is_here(node, second)
                })
                .map(|(node, first, second)| (node, nodes.asked_by(node, first)[0], first, second))
                .find(|(_, down, _, second)| !is_here(*down, *second))
                .expect("five nodes and six shards have such a pair");
            nodes.cluster.crash(down, true);
            for holder in nodes.cluster.holders(GroupId(gone.0)) {
                nodes.unseat(holder, gone);
            }
            let wanted = vec![keys[silent.0 as usize].clone(), keys[gone.0 as usize].clone()];
            let router = nodes.router(stranger);
            let limit = within(Duration::from_secs(1));
            let read = router.batch_get(wanted, 1 << 20, Freshness::Stale, limit);
            let error = read.await.expect_err("one has gone");
            assert_eq!(error.reason(), Reason::NoLeader);
            assert!(error.message().starts_with(&gone.to_string()), "{error}");
            nodes.end().await;
        });
    }
}

/// Nothing is heard of a question: the next node is asked when the time of the first is up, and the read ends in time whatever happens.
#[test]
fn a_node_that_is_silent_is_followed_by_the_next_in_time() {
    story(wide, async |nodes, keys, stranger| {
        nodes.slow_down(Duration::from_secs(3));
        let begun = Instant::now();
        let found = nodes.get(stranger, key_of(keys)).await.expect("the second answers");
        assert_eq!(found.as_deref(), Some(key_of(keys).as_str()));
        // The second one is given more time than the first, and needs it.
        let took = begun.elapsed();
        let least = FIRST_ANSWER + Duration::from_secs(3);
        assert!((least..least + SOON).contains(&took), "{took:?}");
        let heard = nodes.heard();
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert_ne!(heard[0].node, heard[1].node);
        assert_eq!(heard[0].left, FIRST_ANSWER);
        assert_eq!(heard[1].left, FIRST_ANSWER * 2);

        let begun = Instant::now();
        let limit = Duration::from_millis(1500);
        let read = nodes.get_within(stranger, key_of(keys), Freshness::Stale, limit).await;
        let error = read.expect_err("it takes longer");
        assert_eq!(error.reason(), Reason::NoLeader);
        assert_eq!(begun.elapsed(), limit, "a caller is not kept waiting");
        assert_eq!(nodes.heard()[0].left, limit, "nobody works for longer than is waited for");
    });
}

/// It holds the shard by all that is known, but its replica has stopped or gone: then it asks as others do.
#[test]
fn a_node_whose_own_replica_does_not_serve_asks_the_others() {
    story(wide, async |nodes, keys, stranger| {
        let follower = followers(nodes, stranger)[0];
        let check = async |what: &str| {
            let found = nodes.get(follower, key_of(keys)).await.expect("the others serve");
            assert_eq!(found.as_deref(), Some(key_of(keys).as_str()), "{what}");
            assert_eq!(nodes.heard_by(), [nodes.leader(SHARD)], "{what}");
            let all = nodes.get_all(follower, keys).await.expect("the others serve");
            assert_eq!(all.len(), keys.len(), "{what}");
            assert!(!nodes.heard_by().contains(&follower), "nobody asks itself");
        };
        nodes.unseat(follower, SHARD);
        // Without a replica it has heard of no leader; a write tells it.
        nodes.store(follower, vec![(key_of(keys).clone(), json(key_of(keys).as_str()))]).await;
        check("gone").await;
        nodes.seat(follower, SHARD);
        let running = nodes.cluster.running(follower).expect("up");
        running.replica(GroupId(SHARD.0)).stop().await;
        check("stopped").await;
    });
}

/// It goes while a read waits for the leader's word: the read is done elsewhere.
#[test]
fn a_read_whose_replica_goes_meanwhile_is_done_elsewhere() {
    story(wide, async |nodes, keys, stranger| {
        let follower = followers(nodes, stranger)[0];
        let (router, key) = (nodes.router(follower), key_of(keys).clone());
        nodes.cluster.network.set_weather(Weather { delay_ms: 20..=20, lost_of_1000: 0 });
        let (fresh, deadline) = (Freshness::Linearizable, within(PATIENCE));
        let reading = tokio::spawn({
            let (router, key) = (router.clone(), key.clone());
            async move { router.get(key.as_bytes(), fresh, deadline).await }
        });
        let listing = tokio::spawn(async move {
            let found = router.batch_get(vec![key], 1_000, fresh, deadline).await;
            found.map(|items| items.len())
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        nodes.unseat(follower, SHARD);
        let running = nodes.cluster.running(follower).expect("up");
        running.replica(GroupId(SHARD.0)).stop().await;
        assert!(reading.await.expect("no panic").expect("others serve").is_some());
        assert_eq!(listing.await.expect("no panic").expect("others serve"), 1);
    });
}

/// Its replica is there, but its leader knows nothing of it: it is not asked for ever, the others are.
#[test]
fn a_node_whose_replica_knows_nothing_asks_all_the_others() {
    story(wide, async |nodes, keys, stranger| {
        let follower = followers(nodes, stranger)[0];
        let leader = nodes.leader(SHARD);
        nodes.unseat(leader, SHARD);
        let fresh = Freshness::Linearizable;
        let limit = Duration::from_millis(300);
        let read = nodes.get_within(follower, key_of(keys), fresh, limit).await;
        assert_eq!(read.expect_err("nobody leads").kind(), Kind::Unavailable);
        let heard = nodes.heard_by();
        for other in nodes.cluster.holders(GroupId(SHARD.0)) {
            assert_eq!(heard.contains(&other), other != follower, "{heard:?}");
        }
        nodes.seat(leader, SHARD);
        let found = nodes.get(follower, key_of(keys)).await.expect("it leads again");
        assert_eq!(found.as_deref(), Some(key_of(keys).as_str()));
    });
}

#[test]
fn without_follower_reads_only_leaders_answer_what_has_to_be_fresh() {
    let shape = || Shape { follower_reads: false, ..wide() };
    story(shape, async |nodes, keys, stranger| {
        let leader = nodes.leader(SHARD);
        let key = key_of(keys);
        for follower in followers(nodes, stranger) {
            let read = async |freshness| {
                let now = nodes.router(follower).get_now(key.as_bytes(), freshness);
                let now = now.expect("no error");
                let found = nodes.get_within(follower, key, freshness, PATIENCE).await;
                assert!(found.expect("the leader is up").is_some());
                (now.is_some(), nodes.heard_by())
            };
            assert_eq!(read(Freshness::Linearizable).await, (false, vec![leader]));
            assert_eq!(read(Freshness::Lease).await, (false, vec![leader]));
            assert_eq!(read(Freshness::Stale).await, (true, vec![]), "it has it itself");
        }
        // Asked by others it is the same. Nobody has told the stranger who leads.
        let read = async |freshness| {
            let found = nodes.get_within(stranger, key, freshness, PATIENCE).await;
            assert!(found.expect("they are up").is_some());
            nodes.heard()
        };
        let first = nodes.asked_by(stranger, SHARD)[0];
        let heard = read(Freshness::Stale).await;
        assert_eq!((heard.len(), heard[0].node), (1, first), "whoever is first");
        for heard in read(Freshness::Linearizable).await {
            assert_eq!(heard.refused.is_empty(), heard.node == leader, "{heard:?}");
        }
    });
}

/// Questions go one hop: who is asked and has nothing does not ask on.
#[test]
fn a_node_that_is_asked_asks_nobody() {
    simulate(1, async || {
        let (nodes, keys, stranger) = begin(wide(), 1).await;
        let order = nodes.asked_by(stranger, SHARD);
        nodes.move_leader(SHARD, order[2]).await;
        nodes.unseat(order[0], SHARD);
        nodes.get(stranger, key_of(&keys)).await.expect("the next one serves");
        assert_eq!(nodes.heard_by(), order[..2], "by the one node that was to read");
        nodes.end().await;
    });
}

#[test]
fn figures_come_from_where_the_shards_are_and_those_of_which_nobody_tells_are_left_out() {
    simulate(1, async || {
        let (nodes, _, stranger) = begin(wide(), 1).await;
        for node in nodes.all() {
            let figures = nodes.router(node).figures().await.expect("it has met its cluster");
            let shards: Vec<_> = figures.iter().map(|figures| figures.shard).collect();
            assert_eq!(shards, nodes.shards().collect::<Vec<_>>(), "in order, each once");
            assert!(figures.iter().all(|figures| figures.replicas.len() == 3), "{figures:?}");
        }
        for holder in nodes.cluster.holders(GroupId(SHARD.0)) {
            nodes.unseat(holder, SHARD);
        }
        let begun = Instant::now();
        let figures = nodes.router(stranger).figures().await.expect("it has met its cluster");
        let mut shards = figures.iter().map(|figures| figures.shard);
        assert!(shards.by_ref().all(|shard| shard != SHARD));
        assert_eq!(figures.len(), nodes.shards().count() - 1);
        assert_eq!(begun.elapsed(), Duration::from_secs(2), "after which nobody waits");
        nodes.end().await;
    });
}
