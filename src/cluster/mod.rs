//! What a cluster is, as values: its members, what tells it from others, where its shards are and are to be. Pure: no I/O, no clock; the same
//! input gives the same answer on every node.
//!
//! # A cluster's identity
//!
//! The first 16 bytes of SHA-256 over `kvstore cluster 1`, the number of shards (4 bytes) and, for each member in the order of their names, its name
//! (length as a varint, bytes) and its incarnation (16 bytes), as a UUID of version 8, of those who founded it. So it names exactly these data directories: one that
//! was wiped belongs to no cluster any more. Who joins later takes the identity over.
//!
//! # Who knows the newest members
//!
//! Every change of the list of members gives it a larger number, its **revision**. A node that was away, or has just been let in by another one, may meet a node whose list is
//! not the same; of the two, who has the larger number is right, and the other has yet to learn.
//!
//! What a cluster agrees on, and how it changes: `state`. Which nodes are to hold each shard: `placement`, with `members` (weights, zones, shares) and `ring`.
//!
//! Callers: `raft` (who may speak to this node, what is where), `server` (what a data directory says about itself).

mod members;
mod placement;
mod ring;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

pub use self::members::{Member, Members, Weight, Zone};
pub use self::placement::{Epoch, Placement, Topology};
pub use self::state::{
    Change, ClusterState, Life, NODES_MAX, Newcomer, Node, Refused, ReplicaNumber, Replicas,
    Settings, Shard,
};
use crate::util::coding::put_slice;

/// Longest name of a node or a zone.
pub const NAME_BYTES_MAX: usize = 64;

/// Whether `text` can name a node or a zone: 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The name of a node (`kvstore.node.id`). Where it is reached is known elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeName(pub String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// Which data directory of a node: random, made when the directory is first used. One that was wiped and filled again has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub Uuid);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A cluster that exists: all its founders have met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formed {
    /// Tells it from every other one.
    pub cluster: Uuid,
    /// Which list of its members this is: 0 that of its founders, more with every change.
    pub revision: u64,
    /// Its members with their data directories.
    pub members: BTreeMap<NodeName, Incarnation>,
}

/// How far a node is with its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It waits until all of these, itself among them, have met.
    Forming(BTreeSet<NodeName>),
    /// It asks to be let into a cluster that exists.
    Joining,
    /// It belongs to a cluster for good.
    Formed(Formed),
}

impl Formed {
    /// The cluster that `members` found, with `shards` shards.
    pub fn new(members: BTreeMap<NodeName, Incarnation>, shards: u32) -> Self {
        let mut bytes = b"kvstore cluster 1".to_vec();
        bytes.extend_from_slice(&shards.to_le_bytes());
        for (name, incarnation) in &members {
            put_slice(&mut bytes, name.0.as_bytes());
            bytes.extend_from_slice(incarnation.0.as_bytes());
        }
        let digest = Sha256::digest(&bytes);
        let (head, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
        let cluster = uuid::Builder::from_custom_bytes(*head).into_uuid();
        Self { cluster, revision: 0, members }
    }
}

/// `n1, n2 and n3`, for sentences.
pub fn list<'a>(names: impl IntoIterator<Item = &'a NodeName>) -> String {
    let names: Vec<&str> = names.into_iter().map(|name| name.0.as_str()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(list: &[(&str, u128)]) -> BTreeMap<NodeName, Incarnation> {
        list.iter()
            .map(|(name, number)| (NodeName::from(*name), Incarnation(Uuid::from_u128(*number))))
            .collect()
    }

    #[test]
    fn a_cluster_is_named_by_its_members_directories_and_shards() {
        let formed = Formed::new(members(&[("n1", 1), ("n2", 2), ("n3", 3)]), 16);
        assert_eq!(formed, Formed::new(members(&[("n3", 3), ("n1", 1), ("n2", 2)]), 16));
        // On disk and between nodes of different versions it has to stay what it is.
        assert_eq!(formed.cluster.to_string(), "35bfcca3-0e86-8179-bf42-58eeb4f22f6a");
        for (other, shards) in [
            (members(&[("n1", 1), ("n2", 2), ("n3", 3)]), 8),
            (members(&[("n1", 1), ("n2", 2), ("n3", 4)]), 16),
            (members(&[("n1", 1), ("n2", 2), ("n4", 3)]), 16),
            (members(&[("n1", 1), ("n2", 2)]), 16),
        ] {
            assert_ne!(Formed::new(other.clone(), shards).cluster, formed.cluster, "{other:?}");
        }
    }

    #[test]
    fn names_are_listed_as_one_says_them() {
        let names: Vec<NodeName> = ["n1", "n2", "n3"].into_iter().map(NodeName::from).collect();
        assert_eq!(list(&names), "n1, n2 and n3");
        assert_eq!(list(&names[..2]), "n1 and n2");
        assert_eq!(list(&names[..1]), "n1");
    }
}
