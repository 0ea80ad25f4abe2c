//! Members of a group that come and go: one step at a time from the membership there is towards the one that is wanted.
//!
//! # Contract
//!
//! [`Group::step_towards`] looks at what openraft has, does at most one thing, and says how far it is. Nothing is remembered between two calls, so whoever leads the group goes
//! on where another one stopped, also in the middle of a joint membership. A group never has fewer voters on the way than before and after:
//!
//! 1. A joint membership is led to its end, whoever began it.
//! 2. What is to vote and is not in the group yet comes as a learner, with files if the log is long ([`Group::cut_for_newcomers`]).
//! 3. Learners that nobody wants go.
//! 4. What is to vote waits until it has nearly all entries.
//! 5. The leader does not remove itself: it hands over to a voter that stays, and that one goes on. If none stays, what comes votes beside it first.
//! 6. All voters are exchanged at once, by a joint membership.
//!
//! Each change is proposed on the condition that the membership is the one that was looked at, so that two who take themselves for the leader cannot
//! both change it.
//!
//! Called by `raft/controller`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::Precondition;
use tokio::time::timeout;

use super::{APPEND_ENTRIES_MAX, Group};
use crate::error::{Error, Reason, Result};
use crate::raft::types::{LogId, Membership, NodeName, ReplicaId, StoredMembership, TypeConfig};

/// How many election timeouts a change may take to be committed before it is looked at again.
const CHANGE_TIMEOUTS: u32 = 4;

/// Who is to be in a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Goal {
    /// Who votes.
    pub voters: BTreeSet<ReplicaId>,
    /// All replicas, voters and learners, with their nodes.
    pub nodes: BTreeMap<ReplicaId, NodeName>,
}

/// How far a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is where it is to be.
    Reached,
    /// Something was done; there is more.
    Changed,
    /// A learner lacks so many entries; `None`: nobody knows how many, it has not answered yet.
    Copying(Option<u64>),
    /// Another replica is to lead first, and does or will soon.
    HandedOver,
}

impl Group {
    /// The number of this replica.
    pub const fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// The node that a replica is on, by the last membership in the log here.
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeName> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&replica).cloned()
    }

    /// Who votes, by the last membership in the log here.
    pub fn voters(&self) -> Vec<ReplicaId> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().collect()
    }

    /// The membership that the group has committed, as far as it is applied here, if there is no later one in the log: with it nothing is under way.
    pub fn committed_membership(&self) -> Option<StoredMembership> {
        let applied = self.state().membership();
        let effective = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            *metrics.membership_config.log_id()
        };
        let uniform = applied.membership().get_joint_config().len() == 1;
        (uniform && *applied.log_id() == effective).then_some(applied)
    }

    /// Leads a joint membership to its end, if the group is in one.
    ///
    /// # Errors
    ///
    /// As [`Self::step_towards`].
    pub async fn end_joint(&self) -> Result<()> {
        let (now, at) = self.members()?;
        if now.get_joint_config().len() > 1 {
            self.change(ChangeMembers::AddVoterIds(BTreeSet::new()), at).await?;
        }
        Ok(())
    }

    /// The membership, which may not be committed yet, and its entry.
    ///
    /// # Errors
    ///
    /// FAILED_PRECONDITION when this replica is not in it: one that leads all the same is about to end, and openraft does not expect it to change anything.
    fn members(&self) -> Result<(Membership, Option<LogId>)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let now = metrics.membership_config.membership();
        if now.get_node(&self.replica).is_none() {
            let message = format!("{}: this replica belongs to it no more", self.id);
            return Err(Error::new(Reason::FailedPrecondition, message));
        }
        Ok((now.clone(), *metrics.membership_config.log_id()))
    }

    /// Does one step, as the leader. See the [module](self).
    ///
    /// # Errors
    ///
    /// FAILED_PRECONDITION when this replica does not lead, NO_QUORUM when a change was not committed in time: it may be yet. In both cases look again.
    pub async fn step_towards(&self, goal: &Goal) -> Result<Step> {
        let (now, at) = self.members()?;
        if now.get_joint_config().len() > 1 {
            self.change(ChangeMembers::AddVoterIds(BTreeSet::new()), at).await?;
            return Ok(Step::Changed);
        }
        let voters: BTreeSet<ReplicaId> = now.voter_ids().collect();
        let missing = goal.nodes.iter().find(|(replica, _)| now.get_node(replica).is_none());
        if let Some((&replica, node)) = missing {
            self.cut_for_newcomers().await;
            let learner = BTreeMap::from([(replica, node.clone())]);
            self.change(ChangeMembers::AddNodes(learner), at).await?;
            return Ok(Step::Changed);
        }
        let unwanted = now.learner_ids().filter(|replica| !goal.nodes.contains_key(replica));
        let unwanted: BTreeSet<ReplicaId> = unwanted.collect();
        if !unwanted.is_empty() {
            self.change(ChangeMembers::RemoveNodes(unwanted), at).await?;
            return Ok(Step::Changed);
        }
        if voters == goal.voters {
            return Ok(Step::Reached);
        }
        let status = self.status();
        for replica in goal.voters.difference(&voters) {
            match status.lag.get(replica).copied().flatten() {
                Some(lag) if lag <= APPEND_ENTRIES_MAX => {}
                lag => return Ok(Step::Copying(lag)),
            }
        }
        if goal.voters.contains(&self.replica) {
            self.change(ChangeMembers::ReplaceAllVoters(goal.voters.clone()), at).await?;
            return Ok(Step::Changed);
        }
        let stays = |replica: &&ReplicaId| goal.voters.contains(*replica);
        let next = voters.iter().filter(stays).min_by_key(|replica| {
            (status.lag.get(*replica).copied().flatten().unwrap_or(u64::MAX), **replica)
        });
        if let Some(node) = next.and_then(|next| now.get_node(next)) {
            self.hand_over_to(node).await?;
            return Ok(Step::HandedOver);
        }
        self.change(ChangeMembers::AddVoterIds(goal.voters.clone()), at).await?;
        Ok(Step::Changed)
    }

    /// Changes the membership if it is still the one of the entry `at`.
    async fn change(
        &self,
        change: ChangeMembers<ReplicaId, NodeName>,
        at: Option<LogId>,
    ) -> Result<()> {
        let unchanged =
            Precondition::<TypeConfig>::LastMembershipLogId { last_membership_log_id: at };
        let limit: Duration = self.settings.election_timeout * CHANGE_TIMEOUTS;
        let changing = self.raft.change_membership_if(change, false, [unchanged]);
        match timeout(limit, changing).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                Err(Error::new(Reason::FailedPrecondition, format!("{}: {error}", self.id)))
            }
            Err(_) => {
                let message = format!("{}: a change of its members is not committed yet", self.id);
                Err(Error::new(Reason::NoQuorum, message))
            }
        }
    }
}
