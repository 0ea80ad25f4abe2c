//! Where a shard is, from this node: its replica here, if there is one, and the nodes that hold the others.
//!
//! A place stays for as long as the node runs, while replicas come to it and go. What this node's callers write waits in the place and not in a replica, so that nothing is
//! lost when one is exchanged, and a node without one takes writes as well. Readers of the place take no lock.
//!
//! # Rules
//!
//! * What a caller of this node asks goes to the leader: to the replica here when it leads, or to its node, **once**. What another node has passed on is served by the replica
//!   here, or refused; it never goes further.
//! * A replica whose task has ended is as good as none.
//! * A read is answered by the replica here when that belongs to its group and may (`kvstore.raft.follower-reads`), or by one node that is asked, which asks nobody.
//! * A message for a shard whose replica is not here is refused with NotHere: certainly not done.
//!
//! # Tasks
//!
//! One that takes what waits to the leader (`writes.rs`), from [`Place::open`] to [`Place::close`]. Reads (`reads.rs`) have none.
//!
//! Callers: `shard/`, which serves through it; `node.rs`, which says what is there.

mod leader;
mod reads;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use self::leader::Hearsay;
use super::group::{Group, RETRY_PAUSE, Route, Settings};
use super::message::{Envelope, Refusal, Reply, Request};
use super::proposals::Proposals;
use super::transport::Lane;
use super::types::{GroupId, NodeName, ReplicaId};
use crate::command::Command;
use crate::error::{Error, Reason, Result};
use crate::ticket::Ticket;

/// See the [module](self).
pub struct Place {
    id: GroupId,
    seat: ArcSwapOption<Group>,
    replicas: ArcSwap<BTreeMap<ReplicaId, NodeName>>,
    open: OnceLock<Arc<Open>>,
}

/// What a place has from the moment its node knows its cluster.
struct Open {
    settings: Settings,
    proposals: Proposals,
    hearsay: Mutex<Hearsay>,
    /// Nobody is asked again before then.
    rest_until: Mutex<Option<Instant>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Where the leader is.
enum Leader {
    Here(Arc<Group>),
    There(NodeName),
}

impl Place {
    /// The place of group `id`, of which nothing is known yet.
    pub fn new(id: GroupId) -> Arc<Self> {
        Arc::new(Self {
            id,
            seat: ArcSwapOption::empty(),
            replicas: ArcSwap::default(),
            open: OnceLock::new(),
        })
    }

    /// Which group's.
    pub const fn id(&self) -> GroupId {
        self.id
    }

    /// The replica here.
    pub fn seated(&self) -> Option<Arc<Group>> {
        self.seat.load_full()
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

    /// Takes commands from now on, whether or not a replica is here.
    pub(super) fn open(self: &Arc<Self>, settings: &Settings) {
        let open = Arc::new(Open {
            proposals: Proposals::new(settings.budget.clone(), settings.patience()),
            settings: settings.clone(),
            hearsay: Mutex::default(),
            rest_until: Mutex::default(),
            task: Mutex::default(),
        });
        if self.open.set(Arc::clone(&open)).is_ok() {
            let task = tokio::spawn(Arc::clone(self).serve_proposals(Arc::clone(&open)));
            *open.task.lock() = Some(task);
        }
    }

    /// Takes no more commands; those that wait are refused.
    pub(super) async fn close(&self) {
        let Some(open) = self.open.get() else { return };
        open.proposals.close();
        let task = open.task.lock().take();
        if let Some(task) = task {
            task.abort();
            // It was aborted, or has ended.
            let _ = task.await;
        }
    }

    /// Queues a command; the ticket tells what came of it.
    ///
    /// # Errors
    ///
    /// OVERLOADED, NOT_SERVING: certainly not applied.
    pub fn propose(&self, command: Command) -> Result<Ticket> {
        self.opened()?.proposals.push(command)
    }

    /// Has whoever leads the group hand it over to the replica on `node`.
    ///
    /// # Errors
    ///
    /// As [`Group::hand_over_to`]; NO_LEADER when nobody leads it, or it cannot be reached.
    pub async fn move_leader(&self, node: &NodeName) -> Result<()> {
        let open = self.opened()?;
        let mut why = self.no_leader();
        // Every node that may lead it is asked once, and the one that was named last.
        for _ in 0..=self.others(open).len() {
            let leader = match self.leader(open)? {
                Leader::Here(group) => return group.hand_over_to(node).await,
                Leader::There(leader) => leader,
            };
            let message = Request::MoveLeader(node.clone()).encode(&self.envelope(open));
            let Settings { transport, election_timeout, .. } = &open.settings;
            let limit = *election_timeout * 3;
            let reply = transport.call(&leader, Lane::Control, message, limit).await;
            let hint = match reply.map(|bytes| Reply::decode(&bytes)) {
                Ok(Some(Reply::Transferred(true))) => return Ok(()),
                Ok(Some(Reply::Refused(Refusal::Precondition(why)))) => {
                    return Err(Error::new(Reason::FailedPrecondition, why));
                }
                Ok(Some(Reply::Refused(Refusal::NotLeader(hint)))) => hint,
                Ok(_) => None,
                Err(failure) => {
                    why = Error::new(Reason::NoLeader, failure.to_string());
                    None
                }
            };
            self.not_leading(open, &leader, hint);
            sleep(RETRY_PAUSE).await;
        }
        Err(why)
    }

    /// Answers another replica, or a node that passes a caller's request on.
    pub(super) async fn handle(&self, envelope: &Envelope, request: Request) -> Reply {
        let Some(group) = self.seated() else {
            return Reply::Refused(Refusal::NotHere(format!("{} is not here any more", self.id)));
        };
        match request {
            Request::Propose(proposal) => self.serve_passed_on(&group, &proposal).await,
            request => group.handle(envelope, request).await,
        }
    }

    fn opened(&self) -> Result<&Arc<Open>> {
        self.open.get().ok_or_else(not_met)
    }

    /// Where the leader is, or may be.
    fn leader(&self, open: &Open) -> Result<Leader> {
        let mut failed = None;
        let mut believed = None;
        if let Some(group) = self.seated() {
            match (group.check_alive(), group.route()) {
                (Err(error), _) => failed = Some(error),
                (Ok(()), Some(Route::Here)) => return Ok(Leader::Here(group)),
                (Ok(()), Some(Route::There(_, node))) => believed = Some(node),
                // One that has heard nothing yet may be on its way into its group. Others belong to it and hear of the next leader as soon as anybody.
                (Ok(()), None) if !group.is_new() => return Err(self.no_leader()),
                (Ok(()), None) => {}
            }
        }
        let node = open.hearsay.lock().whom_to_ask(believed.as_ref(), &self.others(open));
        let nobody = || failed.unwrap_or_else(|| self.no_leader());
        node.map(Leader::There).ok_or_else(nobody)
    }

    /// `node` does not lead the group, or does not say; it may have said who does.
    fn not_leading(&self, open: &Open, node: &NodeName, hint: Option<NodeName>) {
        // What others take this node for, its own replica knows better.
        let hint = hint.filter(|hint| *hint != open.settings.node);
        open.hearsay.lock().not_leading(node, hint, &self.others(open));
    }

    /// The other nodes that hold the shard.
    fn others(&self, open: &Open) -> Vec<NodeName> {
        let replicas = self.replicas.load();
        let others: BTreeSet<_> =
            replicas.values().filter(|node| **node != open.settings.node).collect();
        others.into_iter().cloned().collect()
    }

    /// Of a message to whichever replica is on the other node.
    fn envelope(&self, open: &Open) -> Envelope {
        Envelope::of_caller(open.settings.cluster, self.id)
    }

    fn no_leader(&self) -> Error {
        Error::new(Reason::NoLeader, format!("{} has no leader now", self.id))
    }
}

fn not_met() -> Error {
    let message = "this node has not met its cluster yet; it was not applied";
    Error::new(Reason::NotServing, message)
}
