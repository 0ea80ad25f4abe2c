//! Commands on their way from this node to the leader: into the log when the replica here leads, or to the node of the leader; and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Leader, Open, Place};
use crate::command::{Outcome, Proposal};
use crate::error::{Error, Reason};
use crate::raft::group::{Attempt, Group, RETRY_PAUSE};
use crate::raft::message::{Refusal, Reply, Request};
use crate::raft::proposals::{IN_FLIGHT_MAX, Queued, refusal};
use crate::raft::transport::{Failure, Lane};
use crate::raft::types::{NodeName, Outcomes};
use crate::util::time::Timestamp;

/// How long a leader lets commands gather while an entry before them is on its way.
const GATHER_MAX: Duration = Duration::from_millis(1);

/// When to come back to a leader that has no room.
const RETRY_AFTER: Duration = Duration::from_millis(50);

impl Place {
    /// With the leader here, commits the commands of another node's callers, together with those of its own.
    pub(super) async fn serve_passed_on(&self, group: &Group, proposal: &Proposal) -> Reply {
        if !group.is_leader() {
            return group.refuse_not_leader();
        }
        let commands = match proposal.decode() {
            Ok((_, commands)) => commands,
            Err(error) => return Reply::Refused(Refusal::NotHere(error.to_string())),
        };
        let queued = group.check_alive().and_then(|()| self.opened());
        match queued.and_then(|open| open.proposals.push_passed_on(commands)) {
            Ok(answer) => answer.await.unwrap_or_else(|_| {
                Reply::Refused(Refusal::Unknown("the shard stopped on that node".to_owned()))
            }),
            Err(error) => Reply::Refused(refusal(&error)),
        }
    }

    /// Takes what waits to the leader, entry by entry, until the place is closed.
    pub(super) async fn serve_proposals(self: Arc<Self>, open: Arc<Open>) {
        let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize));
        while open.proposals.wait().await {
            let rest = open.rest_until.lock().take();
            if let Some(until) = rest {
                sleep_until(until).await;
            }
            let slot = self.wait_slot(&slots).await;
            let leader = self.wait_leader(&open).await;
            let commands = open.proposals.take(matches!(leader, Leader::Here(_)));
            match leader {
                Leader::Here(group) => {
                    let commands = with_room(&open, commands);
                    if commands.is_empty() {
                        continue;
                    }
                    let outcome = group.submit(&commands).await;
                    let open = Arc::clone(&open);
                    tokio::spawn(async move {
                        open.finish(commands, outcome, &group).await;
                        drop(slot);
                    });
                }
                Leader::There(node) => {
                    if commands.is_empty() {
                        continue;
                    }
                    let reply = self.forward(&open, &commands, &node);
                    let (place, open) = (Arc::clone(&self), Arc::clone(&open));
                    tokio::spawn(async move {
                        place.finish_forwarded(&open, commands, &node, reply.await);
                        drop(slot);
                    });
                }
            }
        }
    }

    /// Waits until another entry may be proposed. A leader gives commands the time of the entry before to gather, but not much: where a commit takes
    /// long, several are on their way.
    async fn wait_slot(&self, slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        if self.seated().is_some_and(|group| group.is_leader()) {
            let all = Arc::clone(slots).acquire_many_owned(IN_FLIGHT_MAX);
            if let Ok(Ok(mut all)) = timeout(GATHER_MAX, all).await
                && let Some(slot) = all.split(1)
            {
                return slot;
            }
        }
        Arc::clone(slots).acquire_owned().await.expect("it is never closed")
    }

    /// Where the leader is, once there is somebody to ask.
    async fn wait_leader(&self, open: &Open) -> Leader {
        let mut waited = false;
        loop {
            match self.leader(open) {
                Ok(leader) => {
                    if waited {
                        open.proposals.with_leader();
                    }
                    return leader;
                }
                Err(why) => open.proposals.without_leader(&why),
            }
            waited = true;
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Sends commands to the leader's node, in the order of the calls.
    fn forward(
        &self,
        open: &Open,
        commands: &[Queued],
        node: &NodeName,
    ) -> impl Future<Output = Result<Bytes, Failure>> + Send + 'static {
        let commands = commands.iter().flat_map(Queued::commands);
        let proposal = Proposal::encode(Timestamp::from_millis(0), commands);
        let message = Request::Propose(proposal).encode(&self.envelope(open));
        let settings = &open.settings;
        settings.transport.call(node, Lane::Callers, message, settings.patience())
    }

    fn finish_forwarded(
        &self,
        open: &Open,
        commands: Vec<Queued>,
        node: &NodeName,
        reply: Result<Bytes, Failure>,
    ) {
        let reply = match reply {
            Ok(bytes) => Reply::decode(&bytes),
            Err(Failure::Unreachable(why)) => {
                let why = format!("{}: the leader cannot be reached: {why}", self.id);
                return self.try_another(open, commands, node, None, why);
            }
            Err(Failure::Lost(why)) => {
                self.not_leading(open, node, None);
                return open.lose(commands, &why);
            }
        };
        match reply {
            Some(Reply::Applied(outcomes)) => {
                open.hearsay.lock().has_led(node);
                open.answer(commands, outcomes);
            }
            Some(Reply::Refused(
                refused @ (Refusal::NotLeader(_) | Refusal::NotHere(_) | Refusal::Failed(_)),
            )) => {
                let hint = if let Refusal::NotLeader(hint) = refused { hint } else { None };
                let why = format!("{} has no leader now; the write was not applied", self.id);
                self.try_another(open, commands, node, hint, why);
            }
            Some(Reply::Refused(refusal)) => {
                let error = match refusal {
                    Refusal::NoQuorum(why) => Error::new(Reason::NoQuorum, why),
                    Refusal::Overloaded(why) => Error::overloaded(why, RETRY_AFTER),
                    Refusal::DiskFull(why) => Error::new(Reason::DiskFull, why),
                    other => return open.lose(commands, &format!("{other:?}")),
                };
                for queued in commands {
                    queued.refuse(error.clone());
                }
            }
            other => open.lose(commands, &format!("unexpected reply {other:?}")),
        }
    }

    /// Puts commands back that `node` certainly has not applied, for whoever leads instead.
    fn try_another(
        &self,
        open: &Open,
        commands: Vec<Queued>,
        node: &NodeName,
        hint: Option<NodeName>,
        why: String,
    ) {
        self.not_leading(open, node, hint);
        open.put_back(commands, &Error::new(Reason::NoLeader, why));
    }
}

/// The commands that the leader's disk has room for; deleting is what helps when there is little.
fn with_room(open: &Open, commands: Vec<Queued>) -> Vec<Queued> {
    let Err(full) = open.settings.room.check() else { return commands };
    let (deletes, rest): (Vec<_>, Vec<_>) = commands.into_iter().partition(Queued::is_delete);
    for queued in rest {
        queued.refuse(full.clone());
    }
    deletes
}

impl Open {
    async fn finish(
        &self,
        commands: Vec<Queued>,
        outcome: impl Future<Output = Result<Outcomes, Attempt>>,
        group: &Group,
    ) {
        match outcome.await {
            Ok(Outcomes(outcomes)) => self.answer(commands, outcomes),
            Err(Attempt::NotAppended) => {
                // Whoever it names: a leader that is handing over names the next one, and takes itself for the leader until that is elected.
                self.put_back(commands, &group.no_quorum());
            }
            Err(Attempt::Lost(why)) => self.lose(commands, &why),
        }
    }

    /// Commands that certainly were not applied wait again, where their callers may still leave; all rest a little.
    fn put_back(&self, commands: Vec<Queued>, why: &Error) {
        self.rest();
        self.proposals.put_back(commands, why);
    }

    /// Nobody knows of these commands; those that can be repeated wait again.
    fn lose(&self, commands: Vec<Queued>, why: &str) {
        self.rest();
        self.proposals.lost(commands, why);
    }

    fn rest(&self) {
        *self.rest_until.lock() = Some(Instant::now() + RETRY_PAUSE);
    }

    fn answer(&self, commands: Vec<Queued>, outcomes: Vec<Outcome>) {
        let expected: usize = commands.iter().map(|queued| queued.commands().len()).sum();
        if expected != outcomes.len() {
            return self.lose(commands, "the outcomes do not fit");
        }
        let mut outcomes = outcomes.into_iter();
        for queued in commands {
            queued.answer(&mut outcomes);
        }
    }
}
