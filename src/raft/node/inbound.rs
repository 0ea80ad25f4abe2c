//! What other nodes reach of a node's groups: each message goes to the replica that it names, or is refused.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::Node;
use crate::raft::blocking::blocking;
use crate::raft::files::remove_files;
use crate::raft::group::Group;
use crate::raft::log::GroupLog;
use crate::raft::message::{Envelope, Refusal, Reply, Request};
use crate::raft::state::StateLog;
use crate::raft::transport::Receiver;
use crate::raft::types::{NodeName, ReplicaId};
use crate::types::ShardId;

impl Node {
    /// The group that a message is for.
    fn addressed(
        &self,
        from: &NodeName,
        envelope: &Envelope,
        request: &Request,
    ) -> Result<Arc<Group>, Refusal> {
        let refuse = |why: String| Err(Refusal::NotHere(why));
        if envelope.cluster != self.settings.cluster {
            return refuse(format!(
                "a message for cluster {} came to {}, which belongs to cluster {}",
                envelope.cluster, self.settings.node, self.settings.cluster
            ));
        }
        let Some(group) = self.group(envelope.group) else {
            return refuse(format!("{} is not on {}", envelope.group, self.settings.node));
        };
        if request.is_of_caller() && envelope.from == 0 && envelope.to == 0 {
            return Ok(group);
        }
        if group.replica() != envelope.to {
            return refuse(format!(
                "replica {} of {} is not on {}",
                envelope.to, envelope.group, self.settings.node
            ));
        }
        let known = self.known_node(&group, envelope.from);
        if known.is_some_and(|node| node != *from) {
            return refuse(format!(
                "replica {} of {} is not on {from}, which speaks for it",
                envelope.from, envelope.group
            ));
        }
        Ok(group)
    }

    /// The node that a replica of `group` is on, as far as this one knows. It need not: a replica that has just come knows nobody, and a leader may be newer than
    /// what has reached this node.
    fn known_node(&self, group: &Group, replica: ReplicaId) -> Option<NodeName> {
        group.node_of(replica).or_else(|| {
            let state = self.meta.state()?;
            let shard = state.shards.get(ShardId(group.id().0).0 as usize)?;
            let found = shard.replicas().find(|(other, _)| *other == replica);
            found.map(|(_, node)| node.clone())
        })
    }
}

fn malformed() -> Reply {
    Reply::Refused(Refusal::NotHere("a message of no version that this program reads".to_owned()))
}

/// What a group's state needs of its log.
impl StateLog for GroupLog {
    fn generation(&self) -> u64 {
        Self::generation(self)
    }

    fn set_generation(&self, generation: u64) -> BoxFuture<'static, std::io::Result<()>> {
        let log = self.clone();
        Box::pin(async move { Self::set_generation(&log, generation).await })
    }

    fn durable(&self, index: u64) -> BoxFuture<'static, std::io::Result<()>> {
        let log = self.clone();
        Box::pin(async move { Self::durable(&log, index).await })
    }
}

/// What other nodes reach of a node's groups.
pub struct Inbound(pub Arc<Node>);

impl Receiver for Inbound {
    fn receive(&self, from: &NodeName, message: Bytes) -> BoxFuture<'static, Bytes> {
        let reply = |reply: Reply| -> BoxFuture<'static, Bytes> {
            Box::pin(std::future::ready(reply.encode()))
        };
        let Some((envelope, request)) = Request::decode(&message) else {
            return reply(malformed());
        };
        if let Request::Ask(question) = request {
            return match self.0.answers.get() {
                Some(answers) if envelope.cluster == self.0.settings.cluster => {
                    let answer = answers.answer(from, question);
                    Box::pin(async move { Reply::Told(answer.await).encode() })
                }
                _ => {
                    let why = format!("{} answers no questions of it", self.0.settings.node);
                    reply(Reply::Refused(Refusal::NotHere(why)))
                }
            };
        }
        match self.0.addressed(from, &envelope, &request) {
            Err(refusal) => reply(Reply::Refused(refusal)),
            Ok(group) => {
                let place = self.0.place(group.id()).expect("a group here has a place here");
                let place = Arc::clone(place);
                Box::pin(async move { place.handle(&envelope, request).await.encode() })
            }
        }
    }

    fn staging(&self, from: &NodeName, header: &Bytes) -> Result<PathBuf, Bytes> {
        let Some((envelope, request @ Request::Snapshot(_))) = Request::decode(header) else {
            return Err(malformed().encode());
        };
        self.0
            .addressed(from, &envelope, &request)
            .map_err(|refusal| Reply::Refused(refusal).encode())?;
        Ok(self.0.inbox.join(format!("{}-{}", envelope.group.0, envelope.from)))
    }

    fn received_files(
        &self,
        from: &NodeName,
        header: Bytes,
        directory: PathBuf,
    ) -> BoxFuture<'static, Bytes> {
        let node = Arc::clone(&self.0);
        let from = from.clone();
        let installed = self.0.runtime.spawn(async move {
            let reply = match Request::decode(&header) {
                Some((envelope, request @ Request::Snapshot(vote))) => {
                    match node.addressed(&from, &envelope, &request) {
                        Ok(group) => group.install(vote, &directory).await,
                        Err(refusal) => Reply::Refused(refusal),
                    }
                }
                _ => malformed(),
            };
            // Installed or not, the next attempt brings its own.
            if let Err(error) = blocking(|| remove_files(&*node.settings.fs, &directory)) {
                tracing::warn!(directory = %directory.display(), %error, "received files were not removed");
            }
            reply.encode()
        });
        Box::pin(async move {
            installed.await.unwrap_or_else(|_| {
                let why = "the node is stopping".to_owned();
                Reply::Refused(Refusal::NotHere(why)).encode()
            })
        })
    }
}
