//! What clients and operators see of a cluster and ask of it, from any of its nodes.
//!
//! [`Operate`] is the contract: the public API and the operators' service know no more of a cluster than it says. Implemented by
//! [`super::alone`] for a node by itself, by [`super::member`] for a member of a cluster, by a fake in tests.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};

use crate::error::{Error, Reason, Result};
use crate::proto::admin::{
    ClusterSettings, ListNodesResponse, Shard, UpdateClusterSettingsRequest,
};
use crate::proto::v1::GetRingResponse;
use crate::raft::types::NodeName;
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
    /// which nodes are up and who leads; nodes that know the same have the same epoch.
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

/// What a node carries when nothing else was said, as [`crate::cluster::Weight::USUAL`].
pub(super) const USUAL_WEIGHT: u32 = crate::cluster::Weight::USUAL.0 as u32;

/// Refuses what the state of the cluster does not allow.
pub(super) fn refused<T: Send + 'static>(message: impl Into<String>) -> Asked<T> {
    ready(Err(Error::new(Reason::FailedPrecondition, message))).boxed()
}
