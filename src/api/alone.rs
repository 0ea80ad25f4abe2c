//! A node that runs alone, seen as a cluster of one: it leads every shard, and has no members to change.

use std::sync::Arc;

use super::cluster::{Asked, Operate, USUAL_WEIGHT, refused};
use crate::cluster::NodeName;
use crate::error::{Error, Reason, Result};
use crate::proto::admin::{
    ClusterSettings, ListNodesResponse, Node, Shard, UpdateClusterSettingsRequest,
};
use crate::proto::v1::{GetRingResponse, RingNode, RingShard};
use crate::types::ShardId;

const ALONE: &str =
    "this node runs alone; membership exists in a cluster (kvstore.cluster.members)";

/// The one node, whose ring never changes.
pub struct Alone {
    id: String,
    address: String,
    ring: Arc<GetRingResponse>,
}

impl Alone {
    /// The node `id` with `shards` shards; others reach it at `address`.
    pub fn new(id: String, address: String, shards: u32) -> Self {
        let node = RingNode { id: id.clone(), address: address.clone(), up: true };
        let placement = |shard| RingShard { shard, leader: Some(0), replicas: vec![0] };
        let ring = GetRingResponse {
            epoch: 1,
            shards,
            nodes: vec![node],
            placements: (0..shards).map(placement).collect(),
        };
        Self { id, address, ring: Arc::new(ring) }
    }
}

impl Operate for Alone {
    fn ring(&self) -> Arc<GetRingResponse> {
        Arc::clone(&self.ring)
    }

    fn nodes(&self) -> ListNodesResponse {
        let node = Node {
            id: self.id.clone(),
            address: self.address.clone(),
            state: "up".to_owned(),
            replicas: self.ring.shards,
            leaders: self.ring.shards,
            weight: USUAL_WEIGHT,
            ..Node::default()
        };
        ListNodesResponse { nodes: vec![node], epoch: 0 }
    }

    fn shards(&self) -> Vec<Shard> {
        let own = || vec![self.id.clone()];
        let shard = |id| Shard {
            id,
            leader: self.id.clone(),
            replicas: own(),
            voters: own(),
            target: own(),
            ..Shard::default()
        };
        (0..self.ring.shards).map(shard).collect()
    }

    fn move_leader(&self, _: ShardId, _: NodeName) -> Asked<()> {
        refused(ALONE)
    }

    fn add(&self, _: NodeName, _: String) -> Asked<String> {
        refused(ALONE)
    }

    fn remove(&self, _: NodeName, _: bool) -> Asked<()> {
        refused(ALONE)
    }

    fn drain(&self, _: NodeName) -> Asked<()> {
        refused(ALONE)
    }

    fn replace(&self, _: NodeName, _: NodeName) -> Asked<()> {
        refused(ALONE)
    }

    fn settings(&self) -> Result<ClusterSettings> {
        Err(Error::new(Reason::FailedPrecondition, ALONE))
    }

    fn change_settings(&self, _: UpdateClusterSettingsRequest) -> Asked<ClusterSettings> {
        refused(ALONE)
    }
}
