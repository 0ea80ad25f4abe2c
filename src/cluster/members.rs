//! The members of a cluster as the placement sees them, and what each of them is to carry: its share, and the bound that it is never above.
//!
//! # Shares
//!
//! All replicas (shards times replicas of each) are divided in proportion to the weights, with two limits: a shard has one replica on a node,
//! and at most [`Spread::zone_limits`] in a zone. Who would be above a limit gets just that, and the rest is divided among the others, first over
//! the zones, then in each zone over its nodes. So shares can always be met, and it is the zones that win where they and the weights disagree: with
//! three replicas and three zones every zone holds a copy of everything, however small it is.
//!
//! Shares are exact fractions: no rounding decides differently on another machine.
//!
//! # Zones
//!
//! The limit of a zone is the smallest number with which all replicas of a shard find a place: 1 where there are enough zones, otherwise
//! as few as the zones' sizes allow. A node without a zone is a zone of its own, so without any zones the limit of a zone says that the nodes of a shard
//! are distinct.
//!
//! Called by `cluster/placement`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::NodeName;

/// How much a node carries compared with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Weight(pub u16);

impl Weight {
    /// Of a node about which nothing was said.
    pub const USUAL: Self = Self(100);
    /// A node that is to hold nothing: one that is being emptied.
    pub const NONE: Self = Self(0);
    /// The most that a node may say of itself: ten times the usual.
    pub const MAX: Self = Self(1_000);
}

/// What fails together: a rack, a room, a data center.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Zone(pub String);

/// What the placement has to know of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// How much it carries.
    pub weight: Weight,
    /// Where it is; without one it fails alone.
    pub zone: Option<Zone>,
}

impl Default for Member {
    fn default() -> Self {
        Self { weight: Weight::USUAL, zone: None }
    }
}

/// All nodes, in the order of their names: there is no other order that could matter.
pub type Members = BTreeMap<NodeName, Member>;

/// A part of the replicas, as a fraction.
#[derive(Debug, Clone, Copy)]
struct Share {
    numerator: u128,
    denominator: u128,
}

impl Share {
    const fn whole(replicas: u128) -> Self {
        Self { numerator: replicas, denominator: 1 }
    }
}

/// What a node is to carry, in replicas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Its share, rounded down.
    pub floor: usize,
    /// Its share, rounded up.
    pub ceil: usize,
    /// It is never above this: a quarter above its share, or one replica above its share rounded up where that is more. The one replica is for
    /// small clusters, where otherwise replicas would have to change places only to make room.
    pub bound: usize,
}

impl Load {
    fn new(share: Share, shards: usize) -> Self {
        let Share { numerator, denominator } = share;
        let replicas = |count: u128| usize::try_from(count).unwrap_or(usize::MAX).min(shards);
        let ceil = numerator.div_ceil(denominator);
        let quarter_above = 5 * numerator / (4 * denominator);
        Self {
            floor: replicas(numerator / denominator),
            ceil: replicas(ceil),
            bound: replicas(quarter_above.max(ceil + 1)),
        }
    }
}

/// How the replicas of a cluster are spread over its nodes, which are meant by their index in the order of names.
pub(super) struct Spread {
    /// Replicas of each shard: the replication factor, or as many as there are nodes that may hold some.
    pub replicas: usize,
    /// What each node carries; nothing when its weight is zero.
    pub loads: Vec<Load>,
    /// The zone of each node.
    pub zones: Vec<usize>,
    /// How many replicas of a shard may be in each zone.
    pub zone_limits: Vec<usize>,
}

impl Spread {
    /// Of `shards` shards with `replication_factor` replicas each over `members`.
    pub(super) fn new(members: &Members, shards: usize, replication_factor: usize) -> Self {
        let zones = zones(members);
        let mut nodes_of = vec![Vec::new(); zones.iter().max().map_or(0, |last| last + 1)];
        let mut weights = vec![0; members.len()];
        for (node, member) in members.values().enumerate() {
            weights[node] = u128::from(member.weight.0);
            if member.weight != Weight::NONE {
                nodes_of[zones[node]].push(node);
            }
        }
        let replicas = replication_factor.min(nodes_of.iter().map(Vec::len).sum());
        let zone_limits = zone_limits(&nodes_of, replicas);
        let vessels = nodes_of.iter().zip(&zone_limits).map(|(nodes, limit)| Vessel {
            weight: nodes.iter().map(|node| weights[*node]).sum(),
            limit: (limit * shards) as u128,
        });
        let total = Share::whole((replicas * shards) as u128);
        let zone_shares = pour(total, &vessels.collect::<Vec<_>>());
        let mut loads = vec![Load::default(); members.len()];
        for (nodes, share) in nodes_of.iter().zip(zone_shares) {
            let vessel = |node: &usize| Vessel { weight: weights[*node], limit: shards as u128 };
            let vessels: Vec<_> = nodes.iter().map(vessel).collect();
            for (node, share) in nodes.iter().zip(pour(share, &vessels)) {
                loads[*node] = Load::new(share, shards);
            }
        }
        Self { replicas, loads, zones, zone_limits }
    }
}

/// A number for the zone of each node.
fn zones(members: &Members) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    let mut next = 0;
    let mut fresh = || {
        next += 1;
        next - 1
    };
    let number = |member: &Member| match member.zone.clone() {
        Some(zone) => *numbers.entry(zone).or_insert_with(&mut fresh),
        None => fresh(),
    };
    members.values().map(number).collect()
}

/// The smallest limits that leave room for `replicas` nodes, which there are.
fn zone_limits(nodes_of: &[Vec<usize>], replicas: usize) -> Vec<usize> {
    let limits = |most: usize| nodes_of.iter().map(move |nodes| nodes.len().min(most));
    let enough = (1..replicas).find(|most| limits(*most).sum::<usize>() >= replicas);
    limits(enough.unwrap_or(replicas)).collect()
}

/// What takes a part of a whole in proportion to its weight, until it is full.
struct Vessel {
    weight: u128,
    limit: u128,
}

/// Divides `total`, which is not more than all vessels hold.
///
/// The weights of 2^16 nodes sum up to less than 2^32, so for as many shards no product here reaches 2^128.
fn pour(total: Share, vessels: &[Vessel]) -> Vec<Share> {
    let mut left = total;
    let mut weight: u128 = vessels.iter().map(|vessel| vessel.weight).sum();
    let mut full = vec![false; vessels.len()];
    // Filling one leaves more for the others, and may fill them too.
    loop {
        let fills = |vessel: &Vessel| {
            left.numerator * vessel.weight >= vessel.limit * weight * left.denominator
        };
        let filled: Vec<usize> =
            (0..vessels.len()).filter(|it| !full[*it] && fills(&vessels[*it])).collect();
        if filled.is_empty() {
            break;
        }
        for index in filled {
            full[index] = true;
            left.numerator -= vessels[index].limit * left.denominator;
            weight -= vessels[index].weight;
        }
    }
    let part = |(vessel, full): (&Vessel, bool)| {
        if full {
            return Share::whole(vessel.limit);
        }
        let numerator = left.numerator * vessel.weight;
        Share { numerator, denominator: left.denominator * weight }
    };
    vessels.iter().zip(full).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(list: &[(u16, &str)]) -> Members {
        let member = |(weight, zone): &(u16, &str)| Member {
            weight: Weight(*weight),
            zone: (!zone.is_empty()).then(|| Zone((*zone).to_owned())),
        };
        let named = |(number, it)| (NodeName(format!("n{number:04}")), member(it));
        list.iter().enumerate().map(named).collect()
    }

    /// Floor, ceil and bound of each node for 16 shards with three replicas.
    fn loads(list: &[(u16, &str)]) -> Vec<[usize; 3]> {
        let loads = Spread::new(&members(list), 16, 3).loads;
        loads.iter().map(|it| [it.floor, it.ceil, it.bound]).collect()
    }

    #[test]
    fn equal_nodes_have_equal_shares_and_a_quarter_more_as_their_bound() {
        assert_eq!(loads(&[(100, ""); 2]), [[16, 16, 16]; 2], "never more than all shards");
        assert_eq!(loads(&[(100, ""); 3]), [[16, 16, 16]; 3]);
        assert_eq!(loads(&[(100, ""); 4]), [[12, 12, 15]; 4]);
        assert_eq!(loads(&[(100, ""); 5]), [[9, 10, 12]; 5], "9.6, and 12 at most");
        assert_eq!(loads(&[(100, ""); 100]), [[0, 1, 2]; 100]);
        assert!(loads(&[]).is_empty());
    }

    #[test]
    fn shares_follow_the_weights_until_a_node_has_every_shard() {
        let ceil = |list: &[(u16, &str)]| loads(list).iter().map(|it| it[1]).collect::<Vec<_>>();
        // Three of eight parts would be 18 of 48; the other nodes divide 32, not 30.
        let unequal = [(100, ""), (100, ""), (100, ""), (200, ""), (300, "")];
        assert_eq!(ceil(&unequal), [7, 7, 7, 13, 16]);
        assert_eq!(loads(&[(100, ""), (200, ""), (100, ""), (200, "")])[0], [8, 8, 10]);
        assert_eq!(ceil(&[(9_000, ""), (1, ""), (1, ""), (1, ""), (1, "")]), [16, 8, 8, 8, 8]);
        assert_eq!(ceil(&[(100, ""), (0, ""), (100, ""), (100, "")]), [16, 0, 16, 16]);
        assert_eq!(loads(&[(0, ""), (0, "")]), [[0, 0, 0]; 2]);
    }

    #[test]
    fn zones_come_before_weights() {
        // Every zone has a copy of everything, whatever its size.
        let three = [(100, "a"), (300, "a"), (100, "b"), (100, "c"), (100, "c")];
        assert_eq!(loads(&three).iter().map(|it| it[0]).collect::<Vec<_>>(), [4, 12, 16, 8, 8]);
        // Two zones, of which one has a single node: it cannot have two replicas of a shard.
        let two = [(100, "a"), (100, "b"), (100, "b"), (100, "b")];
        let spread = Spread::new(&members(&two), 16, 3);
        assert_eq!(spread.zone_limits, [1, 2]);
        assert_eq!(spread.loads[0].floor, 16);
        let limits = |list: &[(u16, &str)], factor| {
            let spread = Spread::new(&members(list), 16, factor);
            (spread.replicas, spread.zone_limits)
        };
        assert_eq!(limits(&two, 5), (4, vec![1, 3]));
        assert_eq!(limits(&[(100, "a"), (100, ""), (100, ""), (0, "b")], 3), (3, vec![1, 1, 1, 0]));
        assert_eq!(limits(&[(100, "a"); 5], 3), (3, vec![3]));
    }
}
