//! Commands on their way through a replica: into one entry here, or to the leader; and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::{Group, RETRY_PAUSE, Route};
use crate::command::{Outcome, Proposal};
use crate::error::{Error, Reason};
use crate::raft::message::{Refusal, Reply, Request};
use crate::raft::proposals::{IN_FLIGHT_MAX, Queued, refusal};
use crate::raft::transport::{Failure, Lane};
use crate::raft::types::{NodeName, Outcomes, ReplicaId};

/// How long a leader lets commands gather while an entry before them is on its way.
const GATHER_MAX: Duration = Duration::from_millis(1);

impl Group {
    /// As leader, commits the commands of another node's callers, together with those of its own.
    pub(super) async fn serve_passed_on(&self, proposal: Proposal) -> Reply {
        if !self.is_leader() {
            return self.refuse_not_leader();
        }
        let commands = match proposal.decode() {
            Ok((_, commands)) => commands,
            Err(error) => return Reply::Refused(Refusal::NotHere(error.to_string())),
        };
        match self.check_alive().and_then(|()| self.proposals.push_passed_on(commands)) {
            Ok(answer) => answer.await.unwrap_or_else(|_| {
                Reply::Refused(Refusal::Unknown("the shard stopped on this node".to_owned()))
            }),
            Err(error) => Reply::Refused(refusal(&error)),
        }
    }

    /// Proposes what waits, entry by entry, until the group is stopped.
    pub(super) async fn serve_proposals(self: Arc<Self>) {
        let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize));
        loop {
            if !self.proposals.wait().await {
                return;
            }
            if let Err(error) = self.check_alive() {
                tracing::error!(group = %self.id, %error, "takes no more commands");
                return self.proposals.close();
            }
            let slot = self.wait_slot(&slots).await;
            let route = self.wait_route().await;
            let mut commands = self.proposals.take(matches!(route, Route::Here));
            if matches!(route, Route::Here)
                && let Err(full) = self.check_room()
            {
                // Deleting is what helps.
                let (deletes, rest): (Vec<_>, Vec<_>) =
                    commands.into_iter().partition(Queued::is_delete);
                for queued in rest {
                    queued.refuse(full.clone());
                }
                commands = deletes;
            }
            if commands.is_empty() {
                continue;
            }
            let group = Arc::clone(&self);
            match route {
                Route::Here => {
                    let outcome = self.submit(&commands).await;
                    tokio::spawn(async move {
                        group.finish(commands, outcome).await;
                        drop(slot);
                    });
                }
                Route::There(replica, node) => {
                    let reply = self.forward(&commands, replica, &node);
                    tokio::spawn(async move {
                        group.finish_forwarded(commands, reply.await).await;
                        drop(slot);
                    });
                }
            }
        }
    }

    /// Waits until another entry may be proposed. A leader gives commands the time of the entry before to gather, but not much: where a commit takes
    /// long, several are on their way.
    async fn wait_slot(&self, slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        if self.is_leader() {
            let all = Arc::clone(slots).acquire_many_owned(IN_FLIGHT_MAX);
            if let Ok(Ok(mut all)) = timeout(GATHER_MAX, all).await
                && let Some(slot) = all.split(1)
            {
                return slot;
            }
        }
        Arc::clone(slots).acquire_owned().await.expect("it is never closed")
    }

    /// Where the leader is, once there is one.
    async fn wait_route(&self) -> Route {
        let mut waited = false;
        loop {
            if let Some(route) = self.route() {
                if waited {
                    self.proposals.with_leader();
                }
                return route;
            }
            waited = true;
            self.proposals.without_leader(&self.id);
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Appends one entry with these commands, in the order of the calls; the future waits for what comes of it.
    async fn submit(
        &self,
        commands: &[Queued],
    ) -> impl Future<Output = std::result::Result<Outcomes, Attempt>> + Send + 'static {
        let stamp = self.now();
        let proposal = Proposal::encode(stamp, commands.iter().flat_map(Queued::commands));
        let (responder, outcome) = ProgressResponder::complete_only();
        let submitted = self.raft.client_write_ff(proposal, Some(responder)).await;
        async move {
            if let Err(fatal) = submitted {
                // Where it stopped is not known. A moment later the group knows that it failed.
                sleep(RETRY_PAUSE).await;
                return Err(Attempt::Lost(fatal.to_string()));
            }
            match outcome.await {
                Ok(Ok(response)) => Ok(response.data),
                Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(Attempt::NotAppended),
                Ok(Err(error)) => Err(Attempt::Lost(error.to_string())),
                Err(_) => Err(Attempt::Lost("the shard stopped on this node".to_owned())),
            }
        }
    }

    async fn finish(
        &self,
        commands: Vec<Queued>,
        outcome: impl Future<Output = std::result::Result<Outcomes, Attempt>>,
    ) {
        match outcome.await {
            Ok(Outcomes(outcomes)) => self.answer(commands, outcomes),
            Err(Attempt::NotAppended) => {
                // Whoever it names: a leader that is handing over names the next one, and takes itself for the leader until that is elected.
                sleep(RETRY_PAUSE).await;
                self.proposals.put_back(commands, &self.no_quorum());
            }
            Err(Attempt::Lost(why)) => self.proposals.lost(commands, &why),
        }
    }

    /// Sends commands to the leader, in the order of the calls.
    fn forward(
        &self,
        commands: &[Queued],
        replica: ReplicaId,
        node: &NodeName,
    ) -> impl Future<Output = std::result::Result<bytes::Bytes, Failure>> + Send + 'static {
        let commands = commands.iter().flat_map(Queued::commands);
        let proposal = Proposal::encode(self.now(), commands);
        let message = Request::Propose(proposal).encode(&self.envelope(replica));
        self.settings.transport.call(node, Lane::Callers, message, self.settings.patience())
    }

    async fn finish_forwarded(
        &self,
        commands: Vec<Queued>,
        reply: std::result::Result<bytes::Bytes, Failure>,
    ) {
        let reply = match reply {
            Ok(bytes) => Reply::decode(&bytes),
            Err(Failure::Unreachable(why)) => {
                sleep(RETRY_PAUSE).await;
                let why = format!("{}: the leader cannot be reached: {why}", self.id);
                return self.proposals.put_back(commands, &Error::new(Reason::NoLeader, why));
            }
            Err(Failure::Lost(why)) => {
                sleep(RETRY_PAUSE).await;
                return self.proposals.lost(commands, &why);
            }
        };
        match reply {
            Some(Reply::Applied(outcomes)) => self.answer(commands, outcomes),
            Some(Reply::Refused(
                Refusal::NotLeader(_) | Refusal::NotHere(_) | Refusal::Failed(_),
            )) => {
                sleep(RETRY_PAUSE).await;
                let why = format!("{} has no leader now; the write was not applied", self.id);
                self.proposals.put_back(commands, &Error::new(Reason::NoLeader, why));
            }
            Some(Reply::Refused(refusal)) => {
                let error = match refusal {
                    Refusal::NoQuorum(why) => Error::new(Reason::NoQuorum, why),
                    Refusal::Overloaded(why) => Error::overloaded(why, Duration::from_millis(50)),
                    Refusal::DiskFull(why) => Error::new(Reason::DiskFull, why),
                    other => {
                        sleep(RETRY_PAUSE).await;
                        return self.proposals.lost(commands, &format!("{other:?}"));
                    }
                };
                for queued in commands {
                    queued.refuse(error.clone());
                }
            }
            other => self.proposals.lost(commands, &format!("unexpected reply {other:?}")),
        }
    }

    fn answer(&self, commands: Vec<Queued>, outcomes: Vec<Outcome>) {
        let expected: usize = commands.iter().map(|queued| queued.commands().len()).sum();
        if expected != outcomes.len() {
            return self.proposals.lost(commands, "the outcomes do not fit");
        }
        let mut outcomes = outcomes.into_iter();
        for queued in commands {
            queued.answer(&mut outcomes);
        }
    }
}

/// Why an entry of ours has no outcome.
enum Attempt {
    /// It certainly is not in the log.
    NotAppended,
    /// It may be.
    Lost(String),
}
