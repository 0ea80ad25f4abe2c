//! What a cluster has agreed on: its members, where every shard is to be, where it is, and the change that is under way for it. One document of the
//! meta group, of which every node has a copy.
//!
//! Pure: a state in, a state or a refusal out. Who calls a transition reads the state from the meta group first and stores what comes of it only if nobody
//! stored another one meanwhile, so transitions never see each other half done.
//!
//! # What is planned, and what is
//!
//! | part | says | written by |
//! |---|---|---|
//! | [`ClusterState::members`] | who belongs to the cluster | whoever is asked to admit, drain or remove a node |
//! | [`ClusterState::placement`] | where every shard is to be | the same transition: it follows from the members |
//! | [`Shard::change`] | the one step that is under way for a shard | the controller begins it, the shard's leader ends it |
//! | [`Shard::voters`], [`Shard::learners`] | where a shard is, as of a membership that its group has committed | the shard's leader |
//!
//! # Invariants
//!
//! * A replica's number is given out once, whatever becomes of it.
//! * A shard has one change at a time, of one replica that comes, one that goes, or both. The controller begins it; only the shard's leader, who
//!   knows what its group has committed, says that it is over. So whoever sees a change may carry it on, and nobody has to guess how far it went.
//! * What a leader reports is numbered by the index of the membership's entry, and an older report changes nothing.
//! * A replica may be erased when a state that a quorum has confirmed names it nowhere.
//!
//! Bytes: JSON, with `format` 1. Called by `raft/meta` (the document), `raft/node` (which replicas are here), `controller` (plans and reports), `api`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::members::{Member, Weight, Zone};
use super::placement::{Epoch, Placement, Topology};
use super::{Incarnation, NodeName, list};
use crate::types::ShardId;

/// Version of the document.
const FORMAT: u32 = 1;

/// Most nodes of a cluster.
pub const NODES_MAX: usize = 1_024;

/// Most voters of the meta group: it stays small, so that it stays fast, and survives two nodes.
const META_VOTERS_MAX: usize = 5;

/// Most replicas that a node receives at a time.
const ARRIVING_MAX: usize = 2;

/// A replica's number, as Raft has it.
pub type ReplicaNumber = u64;

/// Replicas with the nodes that they are on.
pub type Replicas = BTreeMap<ReplicaNumber, NodeName>;

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    format: u32,
    /// Which list of members this is: 0 that of the founders, more whenever a node has come or gone.
    pub revision: u64,
    /// The nodes, by name.
    pub members: BTreeMap<NodeName, Node>,
    /// Where every shard is to be.
    pub placement: Placement,
    /// Where every shard is.
    pub shards: Vec<Shard>,
    /// What operators may change.
    pub settings: Settings,
    /// Nodes that shall take the place of another one once they are here: new to old.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replacements: BTreeMap<NodeName, NodeName>,
    last_replica: ReplicaNumber,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Where it is reached, `host:port`.
    pub address: String,
    /// How much it carries, when it carries anything.
    pub weight: Weight,
    /// What it fails together with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// What it does.
    pub life: Life,
    /// The number of its replica of the meta group.
    pub meta: ReplicaNumber,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// It holds shards.
    Member,
    /// It gives its shards away, and stays a member without any.
    Draining,
    /// It gives its shards away, and is no member any more when it has none.
    Leaving,
    /// Nobody has heard of it for too long: its replicas are made anew elsewhere, and it is no member any more then.
    Lost,
}

/// A shard as its group has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Who votes.
    pub voters: Replicas,
    /// Who only follows: replicas that come.
    #[serde(default, skip_serializing_if = "Replicas::is_empty")]
    pub learners: Replicas,
    /// Index of the membership that says so; 0: as founded.
    pub as_of: u64,
    /// What is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

/// A step from one set of replicas to another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add: Option<(ReplicaNumber, NodeName)>,
    /// Goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove: Option<ReplicaNumber>,
    /// It is not wanted any more; too late when what comes votes already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
}

/// What operators may change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Replicas of each shard, at least 1.
    pub replication_factor: u32,
    /// Tokens of a node of the usual weight.
    pub virtual_nodes_per_node: u32,
    /// Seconds of silence after which a node is given up; 0: never.
    pub replace_after_seconds: u64,
    /// Most replicas that move at a time, in the whole cluster; at least 1.
    pub moves_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            replication_factor: 3,
            virtual_nodes_per_node: 150,
            replace_after_seconds: 30 * 60,
            moves_max: 4,
        }
    }
}

/// Why a transition is refused: a sentence that names the reason and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(why.into()))
}

/// A node that is to be a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newcomer {
    /// Its name.
    pub name: NodeName,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Where it is reached, `host:port`.
    pub address: String,
    /// How much it carries.
    pub weight: Weight,
    /// What it fails together with.
    pub zone: Option<Zone>,
}

impl ClusterState {
    /// The state of a cluster that begins with these nodes.
    pub fn found(founders: Vec<Newcomer>, shards: u32, settings: Settings) -> Self {
        let mut state = Self {
            format: FORMAT,
            revision: 0,
            members: BTreeMap::new(),
            placement: Placement {
                epoch: Epoch(0),
                topology: Topology::default(),
                shards: vec![Vec::new(); shards as usize],
            },
            shards: vec![Shard::default(); shards as usize],
            settings,
            replacements: BTreeMap::new(),
            last_replica: 0,
        };
        let founders: BTreeMap<_, _> =
            founders.into_iter().map(|it| (it.name.clone(), it)).collect();
        for founder in founders.into_values() {
            state.add(founder);
        }
        state.place();
        for shard in 0..shards as usize {
            for node in state.placement.shards[shard].clone() {
                let replica = state.next_replica();
                state.shards[shard].voters.insert(replica, node);
            }
        }
        state
    }

    /// Reads a state; what is wrong otherwise.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let state: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if state.format == FORMAT {
            Ok(state)
        } else {
            Err(format!(
                "the cluster's state has format {}, this program reads {FORMAT}",
                state.format
            ))
        }
    }

    /// The bytes that [`Self::from_json`] reads.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("names, numbers and lists are JSON")
    }

    /// The replicas that the meta group of a cluster of `founders` begins with: its first voters.
    pub fn first_meta_voters<'a>(founders: impl IntoIterator<Item = &'a NodeName>) -> Replicas {
        let names: BTreeSet<&NodeName> = founders.into_iter().collect();
        let count = voters_of(names.len());
        (1..).zip(names.into_iter().cloned()).take(count).collect()
    }

    /// The number of the meta group's replica on `node`, one of `founders`.
    pub fn first_meta_replica<'a>(
        founders: impl IntoIterator<Item = &'a NodeName>,
        node: &NodeName,
    ) -> Option<ReplicaNumber> {
        let names: BTreeSet<&NodeName> = founders.into_iter().collect();
        (1..).zip(names).find(|(_, name)| *name == node).map(|(number, _)| number)
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> u32 {
        u32::try_from(self.shards.len()).unwrap_or(u32::MAX)
    }

    /// Shards with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (ShardId, &Shard)> {
        (0..).map(ShardId).zip(&self.shards)
    }

    fn shard_mut(&mut self, shard: ShardId) -> Option<&mut Shard> {
        self.shards.get_mut(shard.0 as usize)
    }

    fn next_replica(&mut self) -> ReplicaNumber {
        self.last_replica += 1;
        self.last_replica
    }

    fn add(&mut self, newcomer: Newcomer) {
        let Newcomer { name, incarnation, address, weight, zone } = newcomer;
        let meta = self.next_replica();
        let node = Node { incarnation, address, weight, zone, life: Life::Member, meta };
        self.members.insert(name, node);
    }

    /// Makes the placement follow from the members and settings.
    fn place(&mut self) {
        let member = |node: &Node| Member {
            weight: if node.life == Life::Member { node.weight } else { Weight::NONE },
            zone: node.zone.clone(),
        };
        let topology = Topology {
            members: self.members.iter().map(|(name, node)| (name.clone(), member(node))).collect(),
            replication_factor: self.settings.replication_factor,
            virtual_nodes_per_node: self.settings.virtual_nodes_per_node,
        };
        if topology != self.placement.topology {
            self.placement = self.placement.next(topology);
        }
    }

    /// Nodes that hold shards.
    fn usable(&self) -> impl Iterator<Item = &NodeName> {
        let holds = |(_, node): &(&NodeName, &Node)| {
            node.life == Life::Member && node.weight != Weight::NONE
        };
        self.members.iter().filter(holds).map(|(name, _)| name)
    }

    fn node(&self, name: &NodeName) -> Result<&Node, Refused> {
        self.members.get(name).ok_or_else(|| {
            Refused(format!(
                "there is no node {name}; the members are {}",
                list(self.members.keys())
            ))
        })
    }

    /// Takes a node in, or what a member says anew of itself.
    ///
    /// # Errors
    ///
    /// When another data directory has its name, or there is no room.
    pub fn admit(&mut self, newcomer: Newcomer) -> Result<(), Refused> {
        if let Some(known) = self.members.get_mut(&newcomer.name) {
            if known.incarnation != newcomer.incarnation {
                return refuse(format!(
                    "a node {} with another data directory is a member: its directory was wiped, or the name is taken; remove that one and join under a new name",
                    newcomer.name
                ));
            }
            known.address = newcomer.address;
            known.weight = newcomer.weight;
            known.zone = newcomer.zone;
            if known.life == Life::Lost {
                known.life = Life::Member;
            }
        } else {
            if self.members.len() >= NODES_MAX {
                return refuse(format!("a cluster has at most {NODES_MAX} nodes"));
            }
            let replaced = self.replacements.remove(&newcomer.name);
            self.add(newcomer);
            self.revision += 1;
            if let Some(old) = replaced.and_then(|old| self.members.get_mut(&old)) {
                old.life = Life::Leaving;
            }
        }
        self.place();
        Ok(())
    }

    /// Gives a node that drains, or was given up, its shards back.
    ///
    /// # Errors
    ///
    /// When there is no such node, or it is leaving.
    pub fn restore(&mut self, name: &NodeName) -> Result<(), Refused> {
        match self.node(name)?.life {
            Life::Leaving => {
                return refuse(format!(
                    "node {name} is being removed; wait until it has gone, and join it under a new name"
                ));
            }
            Life::Member => {}
            Life::Draining | Life::Lost => self.set_life(name, Life::Member),
        }
        Ok(())
    }

    /// Has a node give its shards away.
    ///
    /// # Errors
    ///
    /// When there is no such node, or too few are left to hold the shards.
    pub fn drain(&mut self, name: &NodeName) -> Result<(), Refused> {
        match self.node(name)?.life {
            Life::Draining | Life::Leaving | Life::Lost => {}
            Life::Member => {
                self.check_spare(name, "drained")?;
                self.set_life(name, Life::Draining);
            }
        }
        Ok(())
    }

    /// Has a node give its shards away and leave.
    ///
    /// # Errors
    ///
    /// When there is no such node, or too few are left to hold the shards.
    pub fn remove(&mut self, name: &NodeName) -> Result<(), Refused> {
        match self.node(name)?.life {
            Life::Leaving => {}
            Life::Draining | Life::Lost => self.set_life(name, Life::Leaving),
            Life::Member => {
                self.check_spare(name, "removed")?;
                self.set_life(name, Life::Leaving);
            }
        }
        Ok(())
    }

    /// Gives a node up of which nobody has heard for too long.
    ///
    /// # Errors
    ///
    /// As [`Self::remove`].
    pub fn give_up(&mut self, name: &NodeName) -> Result<(), Refused> {
        match self.node(name)?.life {
            Life::Leaving | Life::Lost => {}
            Life::Draining => self.set_life(name, Life::Lost),
            Life::Member => {
                self.check_spare(name, "replaced")?;
                self.set_life(name, Life::Lost);
            }
        }
        Ok(())
    }

    /// Has `by` take the place of `name`: at once when it is a member, otherwise when it joins.
    ///
    /// # Errors
    ///
    /// When there is no node `name`, or both are one.
    pub fn replace(&mut self, name: &NodeName, by: &NodeName) -> Result<(), Refused> {
        self.node(name)?;
        if name == by {
            return refuse(format!(
                "node {name} cannot take its own place; join the new one under a new name"
            ));
        }
        if self.members.contains_key(by) {
            return self.remove(name);
        }
        self.replacements.retain(|_, old| old != name);
        self.replacements.insert(by.clone(), name.clone());
        Ok(())
    }

    /// Changes settings.
    ///
    /// # Errors
    ///
    /// When a value is out of range, or there are too few nodes for it.
    pub fn set(&mut self, settings: Settings) -> Result<(), Refused> {
        if !(1..=9).contains(&settings.replication_factor) {
            return refuse(format!(
                "replication factor {}: it is 1 to 9",
                settings.replication_factor
            ));
        }
        if !(1..=1_000).contains(&settings.moves_max) {
            return refuse(format!("moves {}: they are 1 to 1,000", settings.moves_max));
        }
        self.settings = settings;
        self.place();
        Ok(())
    }

    fn set_life(&mut self, name: &NodeName, life: Life) {
        if let Some(node) = self.members.get_mut(name) {
            node.life = life;
        }
        self.place();
    }

    /// Refuses when without `name` a shard could not have all its replicas.
    fn check_spare(&self, name: &NodeName, what: &str) -> Result<(), Refused> {
        let rest: Vec<_> = self.usable().filter(|other| *other != name).collect();
        let wanted = self.settings.replication_factor as usize;
        if rest.len() >= wanted {
            return Ok(());
        }
        let rest = if rest.is_empty() { "none".to_owned() } else { list(rest) };
        refuse(format!(
            "node {name} cannot be {what}: every shard is to have {wanted} replicas, and the other nodes that hold shards are {rest}; add a node first, or lower the replication factor (kvstore cluster settings --replication-factor)"
        ))
    }

    /// Begins what the placement asks for and may begin now, and takes back what is under way and not wanted any more. `reached` are the nodes that are up, `gone` those
    /// that were silent for so long that nothing shall wait for them. Whether anything changed.
    pub fn plan(&mut self, reached: &BTreeSet<NodeName>, gone: &BTreeSet<NodeName>) -> bool {
        let mut changed = false;
        let mut arriving: BTreeMap<NodeName, usize> = BTreeMap::new();
        let mut moving = 0;
        for index in 0..self.shards.len() {
            let wanted = &self.placement.shards[index];
            let Some(change) = &mut self.shards[index].change else { continue };
            moving += 1;
            if let Some((_, node)) = &change.add {
                *arriving.entry(node.clone()).or_default() += 1;
                if !change.cancelled && (!wanted.contains(node) || gone.contains(node)) {
                    change.cancelled = true;
                    changed = true;
                }
            }
        }
        for index in 0..self.shards.len() {
            if moving >= self.settings.moves_max as usize {
                break;
            }
            let Some((add, remove)) = self.next_change(index, reached, &arriving) else { continue };
            if let Some(node) = &add {
                *arriving.entry(node.clone()).or_default() += 1;
            }
            let add = add.map(|node| (self.next_replica(), node));
            self.shards[index].change = Some(Change { add, remove, cancelled: false });
            moving += 1;
            changed = true;
        }
        changed
    }

    /// What a shard without a change begins with, if it is not where it is to be.
    fn next_change(
        &self,
        index: usize,
        reached: &BTreeSet<NodeName>,
        arriving: &BTreeMap<NodeName, usize>,
    ) -> Option<(Option<NodeName>, Option<ReplicaNumber>)> {
        let (shard, wanted) = (&self.shards[index], &self.placement.shards[index]);
        if shard.change.is_some() || !shard.learners.is_empty() {
            return None;
        }
        let is_here = |node: &NodeName| shard.voters.values().any(|other| other == node);
        let missing: Vec<_> = wanted.iter().filter(|node| !is_here(node)).collect();
        // The one that is dead anyway goes first.
        let mut extra: Vec<_> =
            shard.voters.iter().filter(|(_, node)| !wanted.contains(node)).collect();
        extra.sort_by_key(|(replica, node)| (reached.contains(*node), **replica));
        let may_come = |node: &&NodeName| {
            reached.contains(*node) && arriving.get(*node).copied().unwrap_or(0) < ARRIVING_MAX
        };
        let (add, remove) = if missing.is_empty() {
            // Only as many as are too many.
            let (replica, _) = extra.first()?;
            (None, Some(**replica))
        } else {
            let full = shard.voters.len() >= wanted.len();
            let remove = extra.first().filter(|_| full).map(|(replica, _)| **replica);
            (Some(missing.into_iter().find(may_come)?.clone()), remove)
        };
        // What is begun has to come to an end: a majority of those who vote then is up.
        let stay = shard.voters.iter().filter(|(replica, _)| remove != Some(**replica));
        let up = stay.clone().filter(|(_, node)| reached.contains(*node)).count();
        let comes = usize::from(add.is_some());
        let voters = stay.count() + comes;
        (2 * (up + comes) > voters).then_some((add, remove))
    }

    /// What the leader of `shard` knows its group to have committed: with the membership at index `as_of`. Ends a change that is over. Whether anything changed.
    pub fn report(
        &mut self,
        shard: ShardId,
        as_of: u64,
        voters: &Replicas,
        learners: &Replicas,
    ) -> bool {
        let Some(shard) = self.shard_mut(shard) else { return false };
        if as_of < shard.as_of {
            return false;
        }
        let before = shard.clone();
        shard.as_of = as_of;
        shard.voters.clone_from(voters);
        shard.learners.clone_from(learners);
        let over = shard.change.as_ref().is_some_and(|change| change.is_over(voters, learners));
        if over {
            shard.change = None;
        }
        *shard != before
    }

    /// The nodes that are to vote in the meta group, by its replica, when `now` do.
    pub fn meta_voters(&self, now: &BTreeSet<ReplicaNumber>) -> BTreeSet<ReplicaNumber> {
        let stays = |life| matches!(life, Life::Member | Life::Draining);
        let mut candidates: Vec<(&NodeName, &Node)> =
            self.members.iter().filter(|(_, node)| stays(node.life)).collect();
        let count = voters_of(candidates.len());
        // Who votes goes on; of the others those that will stay longest.
        candidates.sort_by_key(|(name, node)| {
            (!now.contains(&node.meta), node.life != Life::Member, (*name).clone())
        });
        let mut chosen: Vec<&Node> = Vec::new();
        for only_new_zones in [true, false] {
            for (_, node) in &candidates {
                let is_chosen = chosen.iter().any(|other| other.meta == node.meta);
                let in_zone = node.zone.is_some() && chosen.iter().any(|it| it.zone == node.zone);
                let votes = now.contains(&node.meta);
                if chosen.len() < count && !is_chosen && (votes || !only_new_zones || !in_zone) {
                    chosen.push(node);
                }
            }
        }
        chosen.into_iter().map(|node| node.meta).collect()
    }

    /// The meta group's replicas: one on every member that stays until it has given its shards away.
    pub fn meta_replicas(&self) -> Replicas {
        let stays = |(name, _): &(&NodeName, &Node)| !self.has_gone(name);
        self.members.iter().filter(stays).map(|(name, node)| (node.meta, name.clone())).collect()
    }

    /// Whether a node that leaves, or is lost, has nothing any more.
    pub fn has_gone(&self, name: &NodeName) -> bool {
        let leaves = |node: &Node| matches!(node.life, Life::Leaving | Life::Lost);
        self.members.get(name).is_some_and(leaves)
            && !self.shards.iter().any(|shard| shard.names(name))
    }

    /// Lets go of nodes that have gone and are not in the meta group any more, which has `meta`. Whether there was any.
    pub fn forget(&mut self, meta: &Replicas) -> bool {
        let gone: Vec<NodeName> = self
            .members
            .iter()
            .filter(|(name, node)| self.has_gone(name) && !meta.contains_key(&node.meta))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &gone {
            self.revision += 1;
            self.members.remove(name);
            self.replacements.retain(|_, old| old != name);
        }
        self.place();
        !gone.is_empty()
    }

    /// The node that should lead a shard: the first of its placement that votes.
    pub fn preferred_leader(&self, shard: ShardId) -> Option<&NodeName> {
        let voters = &self.shards.get(shard.0 as usize)?.voters;
        let votes = |node: &&NodeName| voters.values().any(|other| other == *node);
        self.placement.nodes(shard).iter().find(votes)
    }

    /// The replica of `shard` on `node`, if it is to be there: what is in the group or comes to it.
    pub fn replica_on(&self, shard: ShardId, node: &NodeName) -> Option<ReplicaNumber> {
        let shard = self.shards.get(shard.0 as usize)?;
        shard.replicas().find(|(_, name)| *name == node).map(|(replica, _)| replica)
    }

    /// Whether every shard is where it is to be, and nobody leaves.
    pub fn is_settled(&self) -> bool {
        let leaves = |node: &Node| matches!(node.life, Life::Leaving | Life::Lost);
        let at_home = |(shard, wanted): (&Shard, &Vec<NodeName>)| {
            let here: BTreeSet<_> = shard.voters.values().collect();
            shard.change.is_none() && shard.learners.is_empty() && here == wanted.iter().collect()
        };
        !self.members.values().any(leaves)
            && self.shards.iter().zip(&self.placement.shards).all(at_home)
    }
}

/// How many of so many nodes vote in the meta group: an odd number.
fn voters_of(nodes: usize) -> usize {
    let most = nodes.min(META_VOTERS_MAX);
    if most.is_multiple_of(2) { most.saturating_sub(1) } else { most }
}

impl Shard {
    /// All replicas that there are or that come.
    pub fn replicas(&self) -> impl Iterator<Item = (ReplicaNumber, &NodeName)> {
        let comes = self.change.iter().filter_map(|change| change.add.as_ref());
        let here = self.voters.iter().chain(&self.learners).map(|(replica, node)| (*replica, node));
        here.chain(comes.map(|(replica, node)| (*replica, node)))
    }

    fn names(&self, node: &NodeName) -> bool {
        self.replicas().any(|(_, other)| other == node)
    }
}

impl Change {
    /// Whether nothing of it is left to do, or to undo, in a group with these replicas.
    fn is_over(&self, voters: &Replicas, learners: &Replicas) -> bool {
        let there = |replica: ReplicaNumber| {
            voters.contains_key(&replica) || learners.contains_key(&replica)
        };
        let came = self.add.as_ref().is_none_or(|(replica, _)| voters.contains_key(replica));
        let went = self.remove.is_none_or(|replica| !there(replica));
        let undone =
            self.cancelled && self.add.as_ref().is_some_and(|(replica, _)| !there(*replica));
        (came && went) || undone
    }
}

#[cfg(test)]
mod tests;
