//! What clients and operators see of a cluster and ask of it, from any of its nodes.
//!
//! [`Operate`] is the contract: the public API and the operators' service know no more of a cluster than it says. Implemented by
//! [`super::alone`] for a node by itself, by [`ClusterView`] for a member of a cluster whose members do not change, by a fake in tests.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use parking_lot::Mutex;

use crate::error::{Error, Reason, Result};
use crate::proto::admin::{
    ClusterSettings, ListNodesResponse, Node, Shard, UpdateClusterSettingsRequest,
};
use crate::proto::v1::{GetRingResponse, RingNode, RingShard};
use crate::raft::types::{GroupId, NodeName};
use crate::raft::{self, Status};
use crate::types::ShardId;

/// What has been asked of a cluster; it is decided when this is ready, and goes on by itself.
pub type Asked<T> = BoxFuture<'static, Result<T>>;

/// A cluster as one of its nodes sees it.
///
/// What only looks (`ring` to `shards`) tells what this node knows, and waits for nothing. What changes something is asked of whoever
/// decides it, is safe to repeat, and fails with
///
/// * FAILED_PRECONDITION where the state of the cluster does not allow it, or the node that is named is none of it;
/// * NO_LEADER, NO_QUORUM, NOT_SERVING when nobody can decide it now: nothing was changed;
/// * OUTCOME_UNKNOWN when it may have been decided.
///
/// Names, addresses and settings have been checked by the caller as far as that goes without the cluster.
pub trait Operate: Send + Sync + 'static {
    /// Where every shard is. Kept at hand, not made for each call. Its epoch is at least 1, and two rings with one epoch are the same but for
    /// which nodes are up; nodes that know the same have the same epoch.
    fn ring(&self) -> Arc<GetRingResponse>;

    /// The epoch of the ring. Every call of a client that routes asks for it.
    fn epoch(&self) -> u64 {
        self.ring().epoch
    }

    /// The nodes, in order of their names, and the number of the placement.
    fn nodes(&self) -> ListNodesResponse;

    /// The shards, in order of their numbers, without what is stored in them.
    fn shards(&self) -> Vec<Shard>;

    /// Has `shard` led by `node`. Ready when it is.
    fn move_leader(&self, shard: ShardId, node: NodeName) -> Asked<()>;

    /// Expects `node`, which then joins by itself; the command that starts it. Of a member: ends its drain, and the command is empty.
    fn add(&self, node: NodeName, address: String) -> Asked<String>;

    /// Has `node` leave for good once its replicas are elsewhere. With `force` nothing is copied from it.
    fn remove(&self, node: NodeName, force: bool) -> Asked<()>;

    /// Moves all replicas away from `node`, which stays a member.
    fn drain(&self, node: NodeName) -> Asked<()>;

    /// Has `by` take over all replicas of `node`, which leaves for good.
    fn replace(&self, node: NodeName, by: NodeName) -> Asked<()>;

    /// What all nodes share.
    ///
    /// # Errors
    ///
    /// FAILED_PRECONDITION where nodes share nothing; NOT_SERVING while it is not known.
    fn settings(&self) -> Result<ClusterSettings>;

    /// Changes what `change` names; what holds then.
    fn change_settings(&self, change: UpdateClusterSettingsRequest) -> Asked<ClusterSettings>;
}

/// How long a ring is kept before the groups are asked again.
const RING_KEPT: Duration = Duration::from_millis(500);

/// A cluster of the members that founded it, each with a replica of every shard.
pub struct ClusterView {
    /// This node's name.
    own: NodeName,
    /// The gRPC address of every member, by name.
    members: BTreeMap<NodeName, String>,
    shards: u32,
    /// This node's groups, once it has met the cluster.
    groups: Arc<OnceLock<Arc<raft::Node>>>,
    /// Whether another node can be reached now.
    reaches: Box<dyn Fn(&NodeName) -> bool + Send + Sync>,
    kept: Mutex<Option<(Instant, Arc<GetRingResponse>)>>,
}

impl ClusterView {
    /// As `own` sees it, by its `groups` once there are some.
    pub fn new(
        own: NodeName,
        members: BTreeMap<NodeName, String>,
        shards: u32,
        groups: Arc<OnceLock<Arc<raft::Node>>>,
        reaches: impl Fn(&NodeName) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { own, members, shards, groups, reaches: Box::new(reaches), kept: Mutex::new(None) }
    }

    fn is_up(&self, node: &NodeName) -> bool {
        *node == self.own || (self.reaches)(node)
    }

    fn status(&self) -> Vec<Status> {
        self.groups.get().map(|node| node.status()).unwrap_or_default()
    }

    fn make_ring(&self) -> GetRingResponse {
        let index = |name: &NodeName| {
            let position = self.members.keys().position(|member| member == name)?;
            u32::try_from(position).ok()
        };
        let status: BTreeMap<u32, Status> =
            self.status().into_iter().map(|status| (status.group.0, status)).collect();
        let placement = |shard| match status.get(&shard) {
            None => RingShard { shard, leader: None, replicas: Vec::new() },
            Some(status) => RingShard {
                shard,
                leader: status.leader.as_ref().and_then(index),
                replicas: status.replicas.values().filter_map(index).collect(),
            },
        };
        let nodes = self.members.iter().map(|(name, address)| RingNode {
            id: name.0.clone(),
            address: address.clone(),
            up: self.is_up(name),
        });
        // Here only leaders change. Each of them has its term, and a term may begin without one.
        let terms = status.values().map(|it| 2 * it.term + u64::from(it.leader.is_some()));
        GetRingResponse {
            epoch: 1 + terms.sum::<u64>(),
            shards: self.shards,
            nodes: nodes.collect(),
            placements: (0..self.shards).map(placement).collect(),
        }
    }
}

impl Operate for ClusterView {
    fn ring(&self) -> Arc<GetRingResponse> {
        let mut kept = self.kept.lock();
        match &*kept {
            Some((made, ring)) if made.elapsed() < RING_KEPT => Arc::clone(ring),
            _ => {
                let ring = Arc::new(self.make_ring());
                *kept = Some((Instant::now(), Arc::clone(&ring)));
                ring
            }
        }
    }

    fn nodes(&self) -> ListNodesResponse {
        let status = self.status();
        let count = |counts: &dyn Fn(&Status) -> bool| {
            let count = status.iter().filter(|status| counts(status)).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        let node = |(name, address): (&NodeName, &String)| Node {
            id: name.0.clone(),
            address: address.clone(),
            state: if self.is_up(name) { "up" } else { "down" }.to_owned(),
            replicas: count(&|status| status.replicas.values().any(|other| other == name)),
            leaders: count(&|status| status.leader.as_ref() == Some(name)),
            weight: USUAL_WEIGHT,
            ..Node::default()
        };
        ListNodesResponse { nodes: self.members.iter().map(node).collect(), epoch: 0 }
    }

    fn shards(&self) -> Vec<Shard> {
        let shard = |status: Status| {
            let replicas: Vec<String> = status.replicas.into_values().map(|node| node.0).collect();
            Shard {
                id: status.group.0,
                leader: status.leader.map(|node| node.0).unwrap_or_default(),
                voters: replicas.clone(),
                target: replicas.clone(),
                replicas,
                ..Shard::default()
            }
        };
        self.status().into_iter().map(shard).collect()
    }

    fn move_leader(&self, shard: ShardId, node: NodeName) -> Asked<()> {
        if !self.members.contains_key(&node) {
            let names: Vec<_> = self.members.keys().map(|name| name.0.as_str()).collect();
            let message = format!("there is no node {node}; the members are {}", names.join(", "));
            return refused(message);
        }
        let Some(groups) = self.groups.get() else {
            let message = "this node has not met all members of its cluster yet";
            return ready(Err(Error::new(Reason::NotServing, message))).boxed();
        };
        let Some(group) = groups.group(GroupId(shard.0)).cloned() else {
            let count = groups.groups().count();
            return refused(format!(
                "there is no {shard}; this cluster has {count} shards, from 0"
            ));
        };
        async move { group.move_leader(&node).await }.boxed()
    }

    fn add(&self, _: NodeName, _: String) -> Asked<String> {
        refused(FIXED_MEMBERS)
    }

    fn remove(&self, _: NodeName, _: bool) -> Asked<()> {
        refused(FIXED_MEMBERS)
    }

    fn drain(&self, _: NodeName) -> Asked<()> {
        refused(FIXED_MEMBERS)
    }

    fn replace(&self, _: NodeName, _: NodeName) -> Asked<()> {
        refused(FIXED_MEMBERS)
    }

    fn settings(&self) -> Result<ClusterSettings> {
        Err(Error::new(Reason::FailedPrecondition, FIXED_MEMBERS))
    }

    fn change_settings(&self, _: UpdateClusterSettingsRequest) -> Asked<ClusterSettings> {
        refused(FIXED_MEMBERS)
    }
}

/// What a node carries when nothing else was said, as [`crate::cluster::Weight::USUAL`].
pub(super) const USUAL_WEIGHT: u32 = crate::cluster::Weight::USUAL.0 as u32;

const FIXED_MEMBERS: &str = "the members of this cluster are those that founded it (kvstore.cluster.members); this version changes none";

/// Refuses what the state of the cluster does not allow.
pub(super) fn refused<T: Send + 'static>(message: impl Into<String>) -> Asked<T> {
    ready(Err(Error::new(Reason::FailedPrecondition, message))).boxed()
}
