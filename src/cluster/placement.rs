//! The placement: which nodes hold each shard. Consistent hashing with bounded loads (Karger and others, STOC 1997; Mirrokni, Thorup and
//! Zadimoghaddam, SODA 2018), remembered from one member list to the next.
//!
//! # Contract
//!
//! [`Placement::first`] is a function of the topology and the number of shards, [`Placement::next`] of the topology and the placement before. Nothing
//! else comes in: no clock, no randomness, no order of the input. So nodes that agree on a history of topologies agree on the placement; two
//! histories that end in the same topology may not. What a placement promises, for any topology:
//!
//! * A shard has `replication_factor` nodes, all different, or every node that may hold replicas when there are fewer.
//! * Zones: no zone has more replicas of a shard than it must have ([`super::members`]); with enough zones, one at most.
//! * Bound: no node has more replicas than its [`Load::bound`], a quarter (but at least one replica) above its share. A node of weight zero has none.
//!
//! What [`Placement::next`] promises about the way from one to the other, as long as these three can be kept so:
//!
//! * The same topology: nothing moves.
//! * A node that is new, or whose weight was raised, takes replicas up to its share, from the nodes that carry most, those of the shards that meet it
//!   soonest on the ring. Nothing else moves: with equal weights that is at most 1/n of all replicas for the n-th node.
//! * A node that leaves, or falls to weight zero: only what it held moves, to the first nodes on the ring of each shard that carry less than their share.
//!   Until the next node joins, loads are then less even than they could be, within the bound.
//! * A weight that was lowered: what is above the bound moves.
//! * A replication factor that was lowered: nothing moves, the nodes that carry most let go.
//!
//! The first node of each shard should lead it. This order is not kept as strictly, since a leader moves at no cost: it changes wherever leading
//! becomes more even by it.
//!
//! The three go first. More than that moves only where a bound or a zone could not be kept otherwise: when a zone makes it possible to spread
//! better, or is missing afterwards; and when all nodes that could take a replica are at their bound, which changes places along the shortest chain.
//!
//! # Where this leaves the papers
//!
//! Both papers place by the present members alone. Then a bound that shrinks as nodes come pushes replicas from one old node to another (a constant
//! number of moves for each, by Mirrokni's theorem), and a node that comes cannot be promised to be the only one that gains. A database moves gigabytes where a
//! cache misses once, and the meta group remembers the placement anyway; so the placement before is an input here, and the ring only decides among what is
//! allowed. That also permits to fill nodes to their share exactly, and keep the excess for what would move otherwise.
//!
//! # How
//!
//! `keep` what may stay; `fill` what is missing; let nodes that are new or gained weight `claim` their share; `relieve` those above their bound and `fill`
//! again; last, `lead` puts the nodes of each shard in order. Filling takes the first node on the ring below the lowest level that has one: share rounded down, rounded up, bound; claiming goes down the same levels. When all
//! nodes for a replica are at their bound, the shortest `chain` of replicas that make room for each other is an augmenting path of a flow: as
//! the shares themselves are a flow within all limits, there always is one.
//!
//! Called by `state`, which is what the meta group stores.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::NodeName;
use super::members::{Load, Members, Spread, Weight};
use super::ring::{Ring, places};
use crate::types::ShardId;

/// What a placement is made for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The nodes.
    pub members: Members,
    /// `kvstore.hash-ring.replication-factor`: nodes that hold each shard.
    pub replication_factor: u32,
    /// `kvstore.hash-ring.virtual-nodes-per-node`.
    pub virtual_nodes_per_node: u32,
}

/// Numbers the placements of a cluster, from 1.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

/// Which nodes hold each shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Its number.
    pub epoch: Epoch,
    /// What it was made for.
    pub topology: Topology,
    /// The nodes of each shard, in the order in which they should lead it.
    pub shards: Vec<Vec<NodeName>>,
}

impl Placement {
    /// The placement of a cluster that begins.
    pub fn first(shards: u32, topology: Topology) -> Self {
        let shards = vec![Vec::new(); shards as usize];
        Self { epoch: Epoch(0), topology: Topology::default(), shards }.next(topology)
    }

    /// The placement that follows this one when the cluster is to be as `topology` says.
    #[must_use]
    pub fn next(&self, topology: Topology) -> Self {
        let mut plan = Plan::keep(self, &topology);
        plan.fill();
        plan.claim(&self.topology.members, &topology.members);
        plan.relieve();
        plan.fill();
        plan.lead();
        let names: Vec<&NodeName> = topology.members.keys().collect();
        let name = |node: &usize| names[*node].clone();
        let shards = plan.shards.iter().map(|it| it.iter().flatten().map(name).collect()).collect();
        Self { epoch: Epoch(self.epoch.0 + 1), topology, shards }
    }

    /// The nodes of `shard`, in the order in which they should lead it.
    pub fn nodes(&self, shard: ShardId) -> &[NodeName] {
        self.shards.get(shard.0 as usize).map_or(&[], Vec::as_slice)
    }
}

/// A placement in the making. Nodes are meant by their index in the order of names.
///
/// A node is in `shards` at a place if and only if the shard is in `held` of the node.
struct Plan {
    spread: Spread,
    ring: Ring,
    /// Where each shard is on the ring.
    places: Vec<u64>,
    /// The nodes of each shard; `None` where one is missing.
    shards: Vec<Vec<Option<usize>>>,
    /// The shards of each node.
    held: Vec<BTreeSet<usize>>,
    /// What each shard had before.
    before: Vec<Vec<usize>>,
}

/// A place in the list of a shard.
#[derive(Clone, Copy)]
struct Slot {
    shard: usize,
    index: usize,
}

impl Plan {
    /// What may stay of `previous` in `topology`, with a gap for all that is missing.
    fn keep(previous: &Placement, topology: &Topology) -> Self {
        let Topology { members, replication_factor, virtual_nodes_per_node } = topology;
        let count = previous.shards.len();
        let names: Vec<&NodeName> = members.keys().collect();
        let stays = |name: &NodeName| {
            let node = names.binary_search(&name).ok()?;
            (members[name].weight != Weight::NONE).then_some(node)
        };
        let shards: Vec<Vec<Option<usize>>> =
            previous.shards.iter().map(|nodes| nodes.iter().map(stays).collect()).collect();
        let before: Vec<Vec<usize>> =
            shards.iter().map(|nodes| nodes.iter().flatten().copied().collect()).collect();
        let mut held = vec![BTreeSet::new(); members.len()];
        for (shard, nodes) in before.iter().enumerate() {
            for node in nodes {
                held[*node].insert(shard);
            }
        }
        let mut plan = Self {
            spread: Spread::new(members, count, *replication_factor as usize),
            ring: Ring::new(members, *virtual_nodes_per_node),
            places: places(count),
            shards,
            held,
            before,
        };
        for shard in 0..count {
            plan.trim(shard);
        }
        plan
    }

    /// Brings a shard down to what a zone, and it as a whole, may have, and its list to the right length.
    fn trim(&mut self, shard: usize) {
        while let Some(zone) = self.crowded_zone(shard) {
            self.drop_fullest(shard, |plan, node| plan.spread.zones[node] == zone);
        }
        while self.shards[shard].iter().flatten().count() > self.spread.replicas {
            self.drop_fullest(shard, |_, _| true);
        }
        let nodes = &mut self.shards[shard];
        while nodes.len() > self.spread.replicas {
            let gap = nodes.iter().rposition(Option::is_none);
            nodes.remove(gap.expect("there are more places than nodes"));
        }
        nodes.resize(self.spread.replicas, None);
    }

    fn drop_fullest(&mut self, shard: usize, among: impl Fn(&Self, usize) -> bool) {
        let nodes = self.shards[shard].iter().enumerate();
        let candidates = nodes.filter_map(|(index, node)| Some((index, (*node)?)));
        let candidates = candidates.filter(|(_, node)| among(self, *node));
        let (index, _) = candidates
            .max_by_key(|(_, node)| self.excess(*node))
            .expect("there are more than the limit, which is not negative");
        self.put(Slot { shard, index }, None);
    }

    /// Gives every gap a node.
    fn fill(&mut self) {
        for shard in 0..self.shards.len() {
            for index in 0..self.spread.replicas {
                if self.shards[shard][index].is_none() {
                    let slot = Slot { shard, index };
                    let placed = self.fill_from_ring(slot)
                        || self.fill_by_chain(slot, Self::is_new)
                        || self.fill_by_chain(slot, |_, _, _| true);
                    debug_assert!(placed, "shard {shard} finds no node within its bound");
                }
            }
        }
    }

    fn fill_from_ring(&mut self, slot: Slot) -> bool {
        let levels: [fn(&Load) -> usize; 3] = [|it| it.floor, |it| it.ceil, |it| it.bound];
        let found = levels.iter().find_map(|level| {
            let room = |node: &usize| self.held[*node].len() < level(&self.spread.loads[*node]);
            let mut walk = self.ring.walk(self.places[slot.shard]);
            walk.find(|node| room(node) && self.admits(slot, *node))
        });
        if found.is_some() {
            self.put(slot, found);
        }
        found.is_some()
    }

    /// Fills a gap with a node at its bound, which gives one of its `movable` replicas to another, and so on to one that has room.
    fn fill_by_chain(&mut self, gap: Slot, movable: impl Fn(&Self, Slot, usize) -> bool) -> bool {
        // For each node the replica that would come to it, found breadth first: a shorter chain moves less, and no two steps of a shortest one
        // get in each other's way.
        let mut coming: Vec<Option<Slot>> = vec![None; self.held.len()];
        let mut seeking = VecDeque::from([gap]);
        while let Some(slot) = seeking.pop_front() {
            for node in 0..self.held.len() {
                if coming[node].is_some() || !self.admits(slot, node) {
                    continue;
                }
                coming[node] = Some(slot);
                if self.held[node].len() < self.spread.loads[node].bound {
                    self.shift(node, &coming);
                    return true;
                }
                let slots = self.held[node].iter().map(|shard| self.slot_of(*shard, node));
                seeking.extend(slots.filter(|slot| movable(self, *slot, node)));
            }
        }
        false
    }

    /// Gives `node` the replica that comes to it, the node that had it the one that comes there, and so on to the gap.
    fn shift(&mut self, node: usize, coming: &[Option<Slot>]) {
        let mut next = Some(node);
        while let Some((node, slot)) = next.and_then(|node| Some((node, coming[node]?))) {
            next = self.put(slot, Some(node));
        }
    }

    /// Lets every node that is new or has gained weight take its share from those that carry more than theirs.
    fn claim(&mut self, before: &Members, now: &Members) {
        for (node, (name, member)) in now.iter().enumerate() {
            let gained = before.get(name).is_none_or(|it| it.weight < member.weight);
            if gained && self.held[node].len() < self.spread.loads[node].floor {
                let distances = self.ring.distances(&self.places, node);
                let mut shards: Vec<usize> = (0..self.shards.len()).collect();
                shards.sort_by_key(|shard| distances[*shard]);
                let levels: [fn(&Load) -> usize; 3] = [|it| it.bound, |it| it.ceil, |it| it.floor];
                for level in levels {
                    self.claim_above(level, node, &shards);
                }
            }
        }
    }

    fn claim_above(&mut self, level: fn(&Load) -> usize, node: usize, shards: &[usize]) {
        for shard in shards {
            if self.held[node].len() >= self.spread.loads[node].floor {
                return;
            }
            let gives = |(index, giver): (usize, &Option<usize>)| {
                let (slot, giver) = (Slot { shard: *shard, index }, (*giver)?);
                let above = self.held[giver].len() > level(&self.spread.loads[giver]);
                (above && self.admits(slot, node)).then_some((slot, giver))
            };
            let givers = self.shards[*shard].iter().enumerate().filter_map(gives);
            if let Some((slot, _)) = givers.max_by_key(|(_, giver)| self.excess(*giver)) {
                self.put(slot, Some(node));
            }
        }
    }

    /// Takes from every node what is above its bound.
    fn relieve(&mut self) {
        for node in 0..self.held.len() {
            let excess = self.held[node].len().saturating_sub(self.spread.loads[node].bound);
            let shards: Vec<usize> = self.held[node].iter().copied().take(excess).collect();
            for shard in shards {
                self.put(self.slot_of(shard, node), None);
            }
        }
    }

    /// Lets those lead more that lead little for what they hold, until no shard could change its first node for a better balance.
    fn lead(&mut self) {
        let mut leads = vec![0; self.held.len()];
        for first in self.shards.iter().filter_map(|nodes| *nodes.first()?) {
            leads[first] += 1;
        }
        // Each change makes the sum over all nodes of leads * leads / held smaller, so there is an end.
        let mut changed = true;
        while changed {
            changed = false;
            for nodes in &mut self.shards {
                for index in 1..nodes.len() {
                    if let (Some(first), Some(other)) = (nodes[0], nodes[index])
                        && (2 * leads[other] + 1) * self.held[first].len()
                            < (2 * leads[first] - 1) * self.held[other].len()
                    {
                        leads[first] -= 1;
                        leads[other] += 1;
                        nodes.swap(0, index);
                        changed = true;
                    }
                }
            }
        }
    }

    /// Puts `node` there; gives back which one was there.
    fn put(&mut self, slot: Slot, node: Option<usize>) -> Option<usize> {
        let previous = std::mem::replace(&mut self.shards[slot.shard][slot.index], node);
        if let Some(previous) = previous {
            self.held[previous].remove(&slot.shard);
        }
        if let Some(node) = node {
            self.held[node].insert(slot.shard);
        }
        previous
    }

    /// Whether `node` could be there instead of the one that is, however much it carries.
    fn admits(&self, slot: Slot, node: usize) -> bool {
        let zone = self.spread.zones[node];
        let leaves = self.shards[slot.shard][slot.index];
        let leaving = usize::from(leaves.is_some_and(|it| self.spread.zones[it] == zone));
        self.spread.loads[node].bound > 0
            && !self.held[node].contains(&slot.shard)
            && self.in_zone(slot.shard, zone) - leaving < self.spread.zone_limits[zone]
    }

    fn in_zone(&self, shard: usize, zone: usize) -> usize {
        let nodes = self.shards[shard].iter().flatten();
        nodes.filter(|node| self.spread.zones[**node] == zone).count()
    }

    fn crowded_zone(&self, shard: usize) -> Option<usize> {
        let mut zones = self.shards[shard].iter().flatten().map(|node| self.spread.zones[*node]);
        zones.find(|zone| self.in_zone(shard, *zone) > self.spread.zone_limits[*zone])
    }

    fn slot_of(&self, shard: usize, node: usize) -> Slot {
        let index = self.shards[shard].iter().position(|it| *it == Some(node));
        Slot { shard, index: index.expect("the node holds the shard") }
    }

    fn is_new(&self, slot: Slot, node: usize) -> bool {
        !self.before[slot.shard].contains(&node)
    }

    /// Orders nodes by how much they carry: above their bound, then above or below their share.
    fn excess(&self, node: usize) -> (usize, isize) {
        let (count, load) = (self.held[node].len(), &self.spread.loads[node]);
        (count.saturating_sub(load.bound), count.cast_signed() - load.floor.cast_signed())
    }
}

#[cfg(test)]
mod tests;
