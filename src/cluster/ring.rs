//! The ring of consistent hashing (Karger and others, STOC 1997): the hash space of keys bent into a circle, on which every node has tokens
//! in many places, and every shard the place where its slice of the hash space begins. A shard meets the nodes in the order of their tokens
//! clockwise from there.
//!
//! The token of a virtual node is xxh64, seed 0, of the node's name followed by the virtual node's number (4 bytes, little-endian): it depends on
//! nothing else, so a node that comes or goes leaves all other tokens where they are. A node has
//! `kvstore.hash-ring.virtual-nodes-per-node` tokens at the usual weight and in proportion at others, at least one.
//!
//! Nodes are meant by their index in the order of names. Called by `cluster/placement`.

use xxhash_rust::xxh64::xxh64;

use super::members::{Members, Weight};

/// Where every node's tokens lie.
pub(super) struct Ring {
    /// In order; nodes whose tokens coincide are met in the order of their names.
    tokens: Vec<(u64, usize)>,
}

impl Ring {
    /// The ring of all `members` that may hold replicas.
    pub(super) fn new(members: &Members, virtual_nodes_per_node: u32) -> Self {
        let mut tokens = Vec::new();
        for (node, (name, member)) in members.iter().enumerate() {
            let count = u64::from(virtual_nodes_per_node) * u64::from(member.weight.0);
            let count = match member.weight {
                Weight::NONE => 0,
                _ => (count / u64::from(Weight::USUAL.0)).max(1),
            };
            let mut bytes = name.0.as_bytes().to_vec();
            for number in 0..u32::try_from(count).unwrap_or(u32::MAX) {
                bytes.truncate(name.0.len());
                bytes.extend_from_slice(&number.to_le_bytes());
                tokens.push((xxh64(&bytes, 0), node));
            }
        }
        tokens.sort_unstable();
        Self { tokens }
    }

    /// The nodes in the order in which `from` meets their tokens, each as often as it has some.
    pub(super) fn walk(&self, from: u64) -> impl Iterator<Item = usize> {
        let start = self.tokens.partition_point(|(token, _)| *token < from);
        let (before, after) = self.tokens.split_at(start);
        after.iter().chain(before).map(|(_, node)| *node)
    }

    /// How far it is clockwise from each of `places`, which are in order, to the next token of `node`, which has some.
    pub(super) fn distances(&self, places: &[u64], node: usize) -> Vec<u64> {
        let own: Vec<u64> =
            self.tokens.iter().filter(|(_, it)| *it == node).map(|(token, _)| *token).collect();
        let next =
            |place: &u64| own.get(own.partition_point(|token| token < place)).or(own.first());
        places.iter().map(|place| next(place).map_or(0, |it| it.wrapping_sub(*place))).collect()
    }
}

/// Where the slice of each of `shards` shards begins. The router's arithmetic: a key is in shard `xxh64(key) * shards / 2^64`.
pub(super) fn places(shards: usize) -> Vec<u64> {
    let shards = shards as u128;
    let start = |shard: u128| u64::try_from((shard << 64).div_ceil(shards));
    (0..shards).map(|shard| start(shard).expect("a shard is less than their number")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::members::Member;
    use super::*;

    fn ring(names: &[&str], virtual_nodes: u32) -> Ring {
        let members = names.iter().map(|name| ((*name).into(), Member::default())).collect();
        Ring::new(&members, virtual_nodes)
    }

    #[test]
    fn tokens_stay_what_they_are_over_versions() {
        // A changed hash would move most replicas of a cluster that is upgraded and then grows.
        let expected = [
            (9_068_943_168_074_715_508, 0),
            (9_199_458_309_517_928_322, 1),
            (10_648_024_390_824_861_803, 1),
            (14_917_378_277_007_498_503, 0),
        ];
        assert_eq!(ring(&["n1", "n2"], 2).tokens, expected);
    }

    #[test]
    fn a_node_has_tokens_by_its_weight() {
        let weights = [200, 100, 1, 0].map(|weight| Member { weight: Weight(weight), zone: None });
        let names = ["n1", "n2", "n3", "n4"].map(Into::into);
        let tokens = Ring::new(&names.into_iter().zip(weights).collect(), 50).tokens;
        let count = |node| tokens.iter().filter(|(_, it)| *it == node).count();
        assert_eq!(
            [0, 1, 2, 3].map(count),
            [100, 50, 1, 0],
            "at least one, but none of weight zero"
        );
    }

    #[test]
    fn a_walk_goes_once_around_from_the_first_token_at_or_after_its_start() {
        let ring = Ring { tokens: vec![(10, 0), (20, 1), (30, 2), (30, 0)] };
        let walk = |from| ring.walk(from).collect::<Vec<_>>();
        assert_eq!(walk(0), [0, 1, 2, 0]);
        assert_eq!(walk(20), [1, 2, 0, 0]);
        assert_eq!(walk(21), [2, 0, 0, 1]);
        assert_eq!(walk(u64::MAX), [0, 1, 2, 0]);
        assert_eq!(ring.distances(&[0, 15, 31], 0), [10, 15, 10u64.wrapping_sub(31)]);
    }

    #[test]
    fn a_shard_begins_where_the_router_begins_it() {
        for shards in [1, 3, 16, 1000] {
            for (shard, place) in (0u128..).zip(places(shards)) {
                let of = |hash: u64| (u128::from(hash) * shards as u128) >> 64;
                assert_eq!(of(place), shard);
                assert!(shard == 0 || of(place - 1) == shard - 1);
            }
        }
    }
}
