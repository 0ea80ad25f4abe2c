//! Reads over several nodes against a model: random documents and queries, shards on random nodes that move meanwhile.
//!
//! Reads are linearizable, and one client at a time writes, so each page must be exactly what a sorted map has at its moment, although it may be shorter than it could be. A
//! client reads each page at another node, with the token of the one before.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::sleep;

use super::nodes::{Nodes, within};
use super::pages::Asked;
use super::*;
use crate::cluster::{ClusterState, Life, NodeName, Refused};
use crate::error::Kind;
use crate::raft::sim::{NodeIndex, PATIENCE, Shape, shape, simulate};
use crate::raft::types::GroupId;
use crate::storage::testing::property;

/// Queries of one run.
const LISTINGS: usize = 12;

/// A client that is told to come back does so; what it does not get within this time is a failure.
const GIVE_UP: Duration = Duration::from_secs(20);

/// Of which keys are made, so that many have a part in common, and their order is that of bytes.
const LETTERS: [char; 6] = ['a', 'b', '/', '0', 'é', '\u{10ffff}'];

/// Which shards a node holds changes all the time: what may happen between two reads.
#[derive(Debug, Clone, Copy)]
enum Event {
    Write,
    Remove,
    Drain,
    Restore,
    MoveLeader,
    Wait,
}

struct Play {
    nodes: Nodes,
    random: StdRng,
    model: BTreeMap<String, Value>,
    /// Whose replica is hidden, for a moment.
    hidden: Option<(NodeIndex, ShardId)>,
    counts: Counts,
}

/// What a run has seen.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    pages: usize,
    /// Pages to which another node had its part.
    gathered: usize,
    drained: usize,
    too_large: usize,
}

fn random_shape(random: &mut StdRng) -> Shape {
    let founders = random.random_range(2..=5);
    let copies = random.random_range(1..=3.min(u32::try_from(founders).expect("few") - 1));
    Shape {
        founders,
        replication_factor: copies,
        groups: random.random_range(1..=6),
        follower_reads: random.random_ratio(3, 4),
        large_memtables: true,
        ..shape()
    }
}

impl Play {
    async fn start(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let nodes = Nodes::start(random_shape(&mut random), seed).await;
        Self { nodes, random, model: BTreeMap::new(), hidden: None, counts: Counts::default() }
    }

    fn node(&mut self) -> NodeIndex {
        self.random.random_range(self.nodes.all())
    }

    fn name(&mut self) -> String {
        let count = self.random.random_range(1..5);
        (0..count).map(|_| *LETTERS.choose(&mut self.random).expect("some")).collect()
    }

    fn value(&mut self) -> Value {
        let bytes = vec![b'1'; self.random.random_range(0..30)];
        if self.random.random() { Value::Json(bytes.into()) } else { Value::Raw(bytes.into()) }
    }

    /// Does it again while nobody can serve it, as a client would.
    async fn insist<T>(mut work: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let deadline = within(GIVE_UP);
        loop {
            match work().await {
                Err(error) if error.kind() == Kind::Unavailable && Instant::now() < deadline => {
                    sleep(Duration::from_millis(20)).await;
                }
                other => return other,
            }
        }
    }

    async fn write(&mut self, count: usize) {
        let entries: Vec<_> = (0..count).map(|_| (self.name(), self.value())).collect();
        let node = self.node();
        let id = format!("write-{}", self.random.random::<u64>());
        let put = async || {
            let put = |(name, value): &(String, Value)| (key(name), value.clone());
            let batch = entries.iter().map(put).collect();
            let id = RequestId::new(&id);
            self.nodes.router(node).batch_put(batch, None, id, within(GIVE_UP))?.await
        };
        let stored = put().await;
        assert_eq!(stored.expect("with an id it is done again") as usize, count);
        self.model.extend(entries);
    }

    async fn remove(&mut self) {
        let name = self.name();
        let node = self.node();
        let id = RequestId::new(&format!("remove-{}", self.random.random::<u64>()));
        let router = self.nodes.router(node);
        let delete = router.delete(key(&name), None, id, within(GIVE_UP)).expect("there is room");
        let deleted = delete.await.expect("with an id it is done again");
        assert_eq!(deleted, self.model.remove(&name).is_some(), "{name:?}");
    }

    /// Has the cluster agree on something, if it likes to.
    async fn ask(&self, change: impl Fn(&mut ClusterState) -> Result<(), Refused>) -> bool {
        let running = self.nodes.cluster.running(0).expect("up");
        let asked = running.node.meta().change(|state| change(state));
        tokio::time::timeout(PATIENCE, asked).await.is_ok_and(|done| done.is_ok())
    }

    async fn happen(&mut self) {
        if let Some((node, shard)) = self.hidden.take()
            && self.nodes.cluster.holders(GroupId(shard.0)).contains(&node)
        {
            self.nodes.seat(node, shard);
        }
        let events = [
            Event::Write,
            Event::Write,
            Event::Remove,
            Event::Drain,
            Event::Restore,
            Event::MoveLeader,
            Event::Wait,
        ];
        match *events.choose(&mut self.random).expect("some") {
            Event::Write => self.write(1).await,
            Event::Remove => self.remove().await,
            Event::Drain => {
                let node = self.node();
                let name = self.nodes.cluster.name(node).clone();
                self.counts.drained += usize::from(self.ask(|state| state.drain(&name)).await);
            }
            Event::Restore => {
                let restore = |state: &mut ClusterState| {
                    let drained = |node: &&NodeName| state.members[*node].life == Life::Draining;
                    let names: Vec<_> = state.members.keys().filter(drained).cloned().collect();
                    names.iter().try_for_each(|name| state.restore(name))
                };
                self.ask(restore).await;
            }
            Event::MoveLeader => {
                let shard = ShardId(self.random.random_range(0..self.nodes.cluster.shape.groups));
                let node = self.node();
                let target = self.nodes.cluster.name(node).clone();
                let running = self.nodes.cluster.running(0).expect("up");
                let place = running.place(GroupId(shard.0));
                // It may have no replica there.
                let _ = place.move_leader(&target).await;
            }
            Event::Wait => {
                sleep(Duration::from_millis(self.random.random_range(1..100))).await;
            }
        }
        self.hide();
    }

    /// A replica that does not lead goes, and comes back before the next one goes.
    fn hide(&mut self) {
        let shard = ShardId(self.random.random_range(0..self.nodes.cluster.shape.groups));
        let group = GroupId(shard.0);
        let (holders, leader) =
            (self.nodes.cluster.holders(group), self.nodes.cluster.leader(group));
        let preferred = self.nodes.cluster.state().and_then(|state| {
            let first = state.placement.nodes(shard).first()?;
            Some(self.nodes.index(first))
        });
        // The others are a quorum, and whoever leads does not hand over to one that hears nobody.
        let spare = holders.len() >= 3 && leader.is_some() && leader == preferred;
        let follower = holders.into_iter().find(|node| Some(*node) != leader);
        if let Some(follower) = follower
            && self.random.random_ratio(1, 2)
            && spare
            && self.nodes.cluster.arrived().is_ok()
        {
            self.nodes.unseat(follower, shard);
            self.hidden = Some((follower, shard));
        }
    }

    fn asked(&mut self) -> Asked {
        let bound = |play: &mut Self| {
            if play.random.random_ratio(2, 5) { play.name() } else { String::new() }
        };
        let (mut start, mut end, mut prefix) = (bound(self), bound(self), bound(self));
        prefix.truncate(prefix.chars().next().map_or(0, char::len_utf8));
        if !end.is_empty() && end < start {
            std::mem::swap(&mut start, &mut end);
        }
        Asked { start, end, prefix, reverse: self.random.random(), keys_only: self.random.random() }
    }

    fn limits(&mut self) -> PageLimits {
        let few = |random: &mut StdRng, most: usize| {
            if random.random_ratio(2, 3) { random.random_range(1..most) } else { usize::MAX }
        };
        PageLimits { items: few(&mut self.random, 9), bytes: few(&mut self.random, 120) }
    }

    fn freshness(&mut self) -> Freshness {
        if self.random.random_ratio(1, 4) { Freshness::Lease } else { Freshness::Linearizable }
    }

    /// One query, page by page to its end.
    async fn list(&mut self) {
        let (asked, limits, freshness) = (self.asked(), self.limits(), self.freshness());
        let mut last: Option<String> = None;
        loop {
            self.happen().await;
            self.nodes.heard();
            let mut query = asked.query();
            if let Some(last) = &last {
                let token = query.token(last.as_bytes());
                query = query.resume(&token).expect("its own token");
            }
            let node = self.node();
            let router = self.nodes.router(node);
            let page = Self::insist(async || {
                router.page(query.clone(), limits, freshness, within(PATIENCE)).await
            });
            let page = page.await.expect("somebody serves each shard");
            self.counts.pages += 1;
            self.counts.gathered += usize::from(!self.nodes.heard().is_empty());
            self.check(&asked, limits, last.as_deref(), &page);
            if !page.more {
                return;
            }
            last = page.items.last().map(|item| item.key.as_str().to_owned());
        }
    }

    /// It is what the model has next, in order, and ends where it must or earlier.
    fn check(&self, asked: &Asked, limits: PageLimits, last: Option<&str>, page: &Page) {
        let comes =
            |key: &str| last.is_none_or(|last| if asked.reverse { key < last } else { key > last });
        let mut left: Vec<_> =
            self.model.iter().filter(|(key, _)| asked.contains(key) && comes(key)).collect();
        if asked.reverse {
            left.reverse();
        }
        let told: Vec<_> = page.items.iter().map(|item| item.key.as_str()).collect();
        let next: Vec<_> = left.iter().take(told.len()).map(|(key, _)| key.as_str()).collect();
        assert_eq!(told, next, "{asked:?} {limits:?} after {last:?}");
        assert!(page.more || told.len() == left.len(), "{asked:?} {limits:?} after {last:?}");
        assert!(!(page.more && page.items.is_empty()), "where would it go on?");
        let mut bytes = 0;
        for (item, (_, value)) in page.items.iter().zip(&left) {
            let expected = (!asked.keys_only).then_some(*value);
            assert_eq!(item.value.as_ref(), expected, "{:?}", item.key);
            bytes += item.key.as_bytes().len() + expected.map_or(0, |value| value.bytes().len());
        }
        let fits = told.len() <= limits.items && bytes <= limits.bytes;
        assert!(fits || told.len() == 1, "{limits:?}: {} items, {bytes} bytes", told.len());
    }

    /// Many keys at once, some of them twice and some that are not there.
    async fn get_many(&mut self) {
        self.happen().await;
        let mut names: Vec<_> = (0..self.random.random_range(0..20)).map(|_| self.name()).collect();
        for _ in 0..self.random.random_range(0..20) {
            if let Some(name) = self.model.keys().nth(self.random.random_range(0..60)) {
                names.insert(self.random.random_range(0..=names.len()), name.clone());
            }
        }
        let there = names.iter().filter_map(|name| Some((name.clone(), self.model.get(name)?)));
        let there: Vec<_> = there.collect();
        let bytes: usize = there.iter().map(|(name, value)| name.len() + value.bytes().len()).sum();
        // Often it is just enough, or just not.
        let most = [bytes, bytes.saturating_sub(1), bytes / 2, usize::MAX];
        let most = *most.choose(&mut self.random).expect("some");
        let keys: Vec<_> = names.iter().map(|name| key(name)).collect();
        let node = self.random.random_range(self.nodes.all());
        let (router, freshness) = (self.nodes.router(node), Freshness::Linearizable);
        let found = Self::insist(async || {
            router.batch_get(keys.clone(), most, freshness, within(PATIENCE)).await
        });
        match found.await {
            Ok(items) => {
                assert!(bytes <= most, "{bytes} of at most {most} bytes");
                let found = items.iter().map(|item| (item.key.as_str(), item.value.as_ref()));
                let there = there.iter().map(|(name, value)| (name.as_str(), Some(*value)));
                assert!(found.clone().eq(there.clone()), "{:?}", found.collect::<Vec<_>>());
            }
            Err(error) => {
                assert_eq!(error.reason(), Reason::LimitExceeded, "{error}");
                assert!(bytes > most, "{bytes} of at most {most} bytes: {error}");
                assert!(error.message().contains("kvstore.limits.page-size"), "{error}");
                self.counts.too_large += 1;
            }
        }
    }
}

fn play(seed: u64) -> Counts {
    simulate(seed, async || {
        let mut play = Play::start(seed).await;
        let count = play.random.random_range(0..100);
        play.write(count).await;
        for _ in 0..LISTINGS {
            play.list().await;
            play.get_many().await;
        }
        let counts = play.counts;
        play.nodes.end().await;
        counts
    })
}

#[test]
fn reads_over_several_nodes_are_what_a_sorted_map_would_give_while_shards_move() {
    property::check(file!(), (36, 12), &any::<u64>().no_shrink(), |seed| _ = play(seed));
}

/// What the runs above are to see does occur.
#[test]
fn shards_are_read_at_other_nodes_and_move_in_these_runs() {
    let mut all = Counts::default();
    for seed in 0..3 {
        let counts = play(seed);
        all.pages += counts.pages;
        all.gathered += counts.gathered;
        all.drained += counts.drained;
        all.too_large += counts.too_large;
    }
    assert!(all.gathered * 2 > all.pages, "{all:?}");
    assert!(all.drained > 1 && all.too_large > 3, "{all:?}");
}
