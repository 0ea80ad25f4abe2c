//! Commands on their way through a leader: one entry for what is given together, and what becomes of it.

use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;

use super::Group;
use crate::command::Proposal;
use crate::raft::proposals::Queued;
use crate::raft::types::Outcomes;

/// Why an entry of ours has no outcome.
pub(in crate::raft) enum Attempt {
    /// It certainly is not in the log.
    NotAppended,
    /// It may be.
    Lost(String),
}

impl Group {
    /// Appends one entry with these commands, in the order of the calls; the future waits for what comes of it.
    pub(in crate::raft) async fn submit(
        &self,
        commands: &[Queued],
    ) -> impl Future<Output = Result<Outcomes, Attempt>> + Send + use<> {
        let stamp = self.now();
        let proposal = Proposal::encode(stamp, commands.iter().flat_map(Queued::commands));
        let (responder, outcome) = ProgressResponder::complete_only();
        let submitted = self.raft.client_write_ff(proposal, Some(responder)).await;
        async move {
            if submitted.is_err() {
                // openraft's task for the group had ended and never saw it.
                return Err(Attempt::NotAppended);
            }
            match outcome.await {
                Ok(Ok(response)) => Ok(response.data),
                Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(Attempt::NotAppended),
                Ok(Err(error)) => Err(Attempt::Lost(error.to_string())),
                Err(_) => Err(Attempt::Lost("the shard stopped on this node".to_owned())),
            }
        }
    }
}
