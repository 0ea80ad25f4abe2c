//! What other replicas ask of this one, and its answers.

use std::path::Path;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Group;
use crate::raft::blocking::blocking;
use crate::raft::message::{Envelope, Refusal, Reply, Request};
use crate::raft::proposals::refusal;
use crate::raft::types::{AppendReply, Snapshot, Vote, VoteRequest};

impl Group {
    /// Answers another replica, or a node that asks for its leader's work. What it passes on of its callers, the place takes.
    pub async fn handle(&self, envelope: &Envelope, request: Request) -> Reply {
        match request {
            Request::Append(request) => {
                let reply = self.raft.append_entries(request).await;
                if !matches!(reply, Ok(AppendReply::HigherVote(_))) {
                    *self.heard.lock() = Instant::now();
                }
                reply.map_or_else(|error| self.refuse_failed(&error), Reply::Append)
            }
            // An election that the leader has asked for ends its lease.
            Request::Vote(VoteRequest { leadership_transfer: false, .. }) | Request::PreVote(_)
                if self.quarantined.load(Ordering::Acquire) =>
            {
                let why = format!("{}: was just restarted and does not vote yet", self.id);
                Reply::Refused(Refusal::NotHere(why))
            }
            Request::Vote(request) => self
                .raft
                .vote(request)
                .await
                .map_or_else(|error| self.refuse_failed(&error), Reply::Vote),
            Request::PreVote(request) => self
                .raft
                .pre_vote(request)
                .await
                .map_or_else(|error| self.refuse_failed(&error), Reply::Vote),
            Request::Transfer(request) => match self.raft.handle_transfer_leader(request).await {
                Ok(accepted) => Reply::Transferred(accepted.is_ok()),
                Err(error) => self.refuse_failed(&error),
            },
            Request::ReadIndex | Request::MoveLeader(_) if !self.is_leader() => {
                self.refuse_not_leader()
            }
            Request::ReadIndex if !self.has_member(envelope.from) => {
                let why = format!("replica {} does not belong to {} now", envelope.from, self.id);
                Reply::Refused(Refusal::NotHere(why))
            }
            Request::ReadIndex => match self.reads.confirm().await {
                Ok(index) => {
                    self.commit_wanted.notify_waiters();
                    Reply::ReadIndex(index)
                }
                Err(error) => Reply::Refused(Refusal::NoQuorum(error.message().to_owned())),
            },
            Request::MoveLeader(node) => match self.hand_over_to(&node).await {
                Ok(()) => Reply::Transferred(true),
                Err(error) => Reply::Refused(refusal(&error)),
            },
            Request::Propose(_) | Request::Ask(_) | Request::Snapshot(_) => {
                let why = format!("{}: no message for a replica, from {}", self.id, envelope.from);
                Reply::Refused(Refusal::NotHere(why))
            }
        }
    }

    /// Takes over the state whose files are in `directory`, from the leader with `vote`.
    pub async fn install(&self, vote: Vote, directory: &Path) -> Reply {
        let staged = blocking(|| self.state.stage(directory));
        let (meta, snapshot) = match staged {
            Ok(staged) => staged,
            Err(error) => return Reply::Refused(Refusal::NotHere(error.to_string())),
        };
        let index = meta.last_log_id.map_or(0, |log_id| log_id.index);
        match self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await {
            Ok(reply) => {
                tracing::info!(group = %self.id, index, "took over a snapshot of the leader");
                Reply::Installed(reply.vote)
            }
            Err(fatal) => self.refuse_failed(&fatal),
        }
    }
}
