//! The changes of the shards that this node leads, carried on.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{sleep, timeout};

use crate::cluster::{Change, ClusterState, Replicas, Shard};
use crate::error::Result;
use crate::raft::group::{Goal, Group, Step};
use crate::raft::meta::Meta;
use crate::raft::node::Node;
use crate::raft::types::{ReplicaId, StoredMembership};
use crate::types::ShardId;

/// How often a change is looked at that is under way.
const STEP_INTERVAL: Duration = Duration::from_millis(50);

/// How often the shards are looked at when nothing is to be done.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Carries on what is under way for the shards that this node leads.
pub(in crate::raft) async fn move_replicas(node: Arc<Node>) {
    loop {
        let version = node.meta().version();
        let mut busy = false;
        if let Some(state) = node.meta().state() {
            let led = node.groups().into_iter().filter(|group| group.is_leader());
            let due: Vec<_> = led.filter(|group| is_due(group, &state)).collect();
            busy = !due.is_empty();
            // One after the other where they want the same document; the waiting is for the groups.
            let steps = due.iter().map(|group| carry_on(node.meta(), group));
            for (group, outcome) in due.iter().zip(join_all(steps).await) {
                if let Err(error) = outcome {
                    tracing::debug!(group = %group.id(), %error, "its members do not change now");
                }
            }
        }
        if busy {
            sleep(STEP_INTERVAL).await;
        } else {
            let _ = timeout(LOOK_INTERVAL, node.meta().changed(version)).await;
        }
    }
}

/// Whether the leader of a group has something to do or to say.
fn is_due(group: &Group, state: &ClusterState) -> bool {
    let Some(shard) = state.shards.get(group.id().0 as usize) else { return false };
    let Some(membership) = group.committed_membership() else { return true };
    shard.change.is_some() || index_of(&membership) > shard.as_of || has_strays(&membership)
}

/// Learners that nobody waits for.
fn has_strays(membership: &StoredMembership) -> bool {
    membership.membership().learner_ids().next().is_some()
}

fn index_of(membership: &StoredMembership) -> u64 {
    membership.log_id().map_or(0, |log_id| log_id.index)
}

/// One step of what is under way for a shard, then the report of what its group has committed.
async fn carry_on(meta: &Meta, group: &Group) -> Result<()> {
    // Not from a copy that may be old: a change that is over must not be begun again.
    let state = meta.confirmed().await?;
    let id = ShardId(group.id().0);
    let Some(shard) = state.shards.get(id.0 as usize) else { return Ok(()) };
    let Some(goal) = goal(group, shard) else { return group.end_joint().await };
    let reached = group.step_towards(&goal).await? == Step::Reached;
    let Some(membership) = group.committed_membership().filter(|_| reached) else { return Ok(()) };
    let (voters, learners) = replicas(&membership);
    let as_of = index_of(&membership);
    if as_of > shard.as_of || shard.change.is_some() {
        meta.change(|state| {
            state.report(id, as_of, &voters, &learners);
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Who is to be in the group, as it stands and with what is under way; `None` while its membership is about to change.
fn goal(group: &Group, shard: &Shard) -> Option<Goal> {
    let membership = group.committed_membership()?;
    let (voters, _) = replicas(&membership);
    let mut goal = Goal { voters: voters.keys().copied().collect(), nodes: voters };
    let Some(Change { add, remove, cancelled }) = &shard.change else { return Some(goal) };
    if let Some((replica, node)) = add {
        let votes = goal.voters.contains(replica);
        if *cancelled && !votes {
            return Some(goal);
        }
        goal.voters.insert(*replica);
        goal.nodes.insert(*replica, node.clone());
    }
    if let Some(replica) = remove {
        goal.voters.remove(replica);
        // It stays in the group until the voters are exchanged.
    }
    Some(goal)
}

fn replicas(membership: &StoredMembership) -> (Replicas, Replicas) {
    let membership = membership.membership();
    let voters: Vec<ReplicaId> = membership.voter_ids().collect();
    let all = membership.nodes().map(|(replica, node)| (*replica, node.clone()));
    all.partition(|(replica, _)| voters.contains(replica))
}
