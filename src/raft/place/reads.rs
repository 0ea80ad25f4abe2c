//! Where a shard is read: by the replica here, or by asking a node that has one. What is asked and answered is known to the layers above.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Open, Place};
use crate::error::Result;
use crate::raft::group::{Group, Route};
use crate::raft::message::{Envelope, Refusal, Reply, Request};
use crate::raft::transport::{Failure, Lane};
use crate::raft::types::{GroupId, NodeName};

/// How many election timeouts a node has for the first answer: a leader that was cut off is followed by another one within two.
const ASK_TIMEOUTS: u32 = 2;

impl Place {
    /// The replica here, when it may answer a read that has to be fresh, or one that may be `stale`.
    pub fn reader(&self, stale: bool) -> Option<Arc<Group>> {
        self.seated().filter(|group| group.may_read(stale))
    }

    /// The node that leads, by the word of the replica here.
    pub fn leader_elsewhere(&self) -> Option<NodeName> {
        match self.seated()?.route()? {
            Route::There(_, node) => Some(node),
            Route::Here => None,
        }
    }

    /// The other nodes that hold the shard, in the order in which to ask them: the leader, if it is known; then the rest, from another one for each shard.
    ///
    /// # Errors
    ///
    /// NOT_SERVING before this node has met its cluster.
    pub fn holders(&self) -> Result<Vec<NodeName>> {
        let open = self.opened()?;
        let mut holders = self.others(open);
        if !holders.is_empty() {
            let first = self.id.0 as usize % holders.len();
            holders.rotate_left(first);
        }
        let believed = self.leader_elsewhere();
        let leader = open.hearsay.lock().leader(believed.as_ref());
        if let Some(leader) = leader {
            holders.retain(|node| *node != leader);
            holders.insert(0, leader);
        }
        Ok(holders)
    }

    /// `node` was asked and does not serve the shard; `hint`: who leads it, by its word.
    pub fn is_not_served_by(&self, node: &NodeName, hint: Option<NodeName>) {
        if let Ok(open) = self.opened() {
            self.not_leading(open, node, hint);
        }
    }

    /// How long a node that was asked has for its answer before another one is asked.
    ///
    /// # Errors
    ///
    /// NOT_SERVING before this node has met its cluster.
    pub fn ask_timeout(&self) -> Result<Duration> {
        Ok(self.opened()?.settings.election_timeout * ASK_TIMEOUTS)
    }

    /// Asks another node, which answers from what it has and asks no further. The question may be about other shards as well.
    ///
    /// # Errors
    ///
    /// NOT_SERVING before this node has met its cluster. The future fails when there is no answer.
    pub fn ask(
        &self,
        node: &NodeName,
        question: Bytes,
        limit: Duration,
    ) -> Result<impl Future<Output = Result<Bytes, Failure>> + Send + use<>> {
        let Open { settings, .. } = &**self.opened()?;
        let envelope = Envelope::of_caller(settings.cluster, GroupId(0));
        let message = Request::Ask(question).encode(&envelope);
        let reply = settings.transport.call(node, Lane::Callers, message, limit);
        Ok(async move {
            match Reply::decode(&reply.await?) {
                Some(Reply::Told(answer)) => Ok(answer),
                Some(Reply::Refused(Refusal::NotHere(why))) => Err(Failure::Unreachable(why)),
                other => Err(Failure::Lost(format!("unexpected reply {other:?}"))),
            }
        })
    }
}
