//! Where a shard is, from this node: its replica here, if there is one, and the nodes that hold the others.
//!
//! A place stays for as long as the node runs, while replicas come to it and go. Readers take no lock.
//!
//! Callers: `shard/`, which serves through it; `node.rs`, which says what is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::group::Group;
use super::types::{GroupId, NodeName, ReplicaId};
use crate::error::{Error, Reason, Result};

/// See the [module](self).
pub struct Place {
    id: GroupId,
    seat: ArcSwapOption<Group>,
    replicas: ArcSwap<BTreeMap<ReplicaId, NodeName>>,
}

impl Place {
    /// The place of group `id`, of which nothing is known yet.
    pub fn new(id: GroupId) -> Arc<Self> {
        Arc::new(Self { id, seat: ArcSwapOption::empty(), replicas: ArcSwap::default() })
    }

    /// Which group's.
    pub const fn id(&self) -> GroupId {
        self.id
    }

    /// The replica here.
    pub fn seated(&self) -> Option<Arc<Group>> {
        self.seat.load_full()
    }

    /// The replica here.
    ///
    /// # Errors
    ///
    /// NOT_SERVING when there is none.
    pub fn group(&self) -> Result<Arc<Group>> {
        self.seated().ok_or_else(|| {
            let message = "this node has not met its cluster yet; it was not applied";
            Error::new(Reason::NotServing, message)
        })
    }

    /// A replica is here from now on, or none any more.
    pub(super) fn seat(&self, group: Option<Arc<Group>>) {
        self.seat.store(group);
    }

    /// The nodes that hold the shard, by replica, as this node has heard; empty until it has.
    pub fn replicas(&self) -> Arc<BTreeMap<ReplicaId, NodeName>> {
        self.replicas.load_full()
    }

    /// The shard is there from now on.
    pub(super) fn set_replicas(&self, replicas: BTreeMap<ReplicaId, NodeName>) {
        self.replicas.store(Arc::new(replicas));
    }
}
