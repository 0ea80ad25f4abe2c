//! What operators see of a cluster and ask of it, from any of its nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Reason, Result};
use crate::proto::admin::Node;
use crate::raft::types::{GroupId, NodeName};
use crate::raft::{self, Status};
use crate::types::ShardId;

/// A cluster as one of its nodes sees it.
pub struct ClusterView {
    /// This node's name.
    pub own: NodeName,
    /// The gRPC address of every member, by name.
    pub members: BTreeMap<NodeName, String>,
    /// This node's groups, once it has met the cluster.
    pub groups: Arc<OnceLock<Arc<raft::Node>>>,
    /// Whether another node can be reached now.
    pub reaches: Box<dyn Fn(&NodeName) -> bool + Send + Sync>,
}

impl ClusterView {
    /// The members, with what this node knows of them.
    pub(super) fn nodes(&self) -> Vec<Node> {
        let status = self.groups.get().map(|node| node.status()).unwrap_or_default();
        let count = |counts: &dyn Fn(&Status) -> bool| {
            let count = status.iter().filter(|status| counts(status)).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        let node = |(name, address): (&NodeName, &String)| {
            let up = *name == self.own || (self.reaches)(name);
            Node {
                id: name.0.clone(),
                address: address.clone(),
                state: if up { "up" } else { "down" }.to_owned(),
                replicas: count(&|status| status.replicas.values().any(|other| other == name)),
                leaders: count(&|status| status.leader.as_ref() == Some(name)),
            }
        };
        self.members.iter().map(node).collect()
    }

    /// Has `shard` led by `node`.
    pub(super) async fn move_leader(&self, shard: ShardId, node: String) -> Result<()> {
        let node = NodeName(node);
        if !self.members.contains_key(&node) {
            let names: Vec<_> = self.members.keys().map(|name| name.0.as_str()).collect();
            let message = format!("there is no node {node}; the members are {}", names.join(", "));
            return Err(Error::new(Reason::FailedPrecondition, message));
        }
        let groups = self.groups.get().ok_or_else(|| {
            let message = "this node has not met all members of its cluster yet";
            Error::new(Reason::NotServing, message)
        })?;
        let place = groups.place(GroupId(shard.0)).ok_or_else(|| {
            let count = groups.groups().count();
            let message = format!("there is no {shard}; this cluster has {count} shards, from 0");
            Error::new(Reason::FailedPrecondition, message)
        })?;
        place.move_leader(&node).await
    }
}
