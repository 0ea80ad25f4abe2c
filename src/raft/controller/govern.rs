//! What the leader of the meta group sees to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::cluster::{ClusterState, Life, NodeName};
use crate::error::Result;
use crate::raft::group::{Goal, Group};
use crate::raft::node::Node;

/// How often the cluster is looked at when it is where it is to be, and when it is not.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const BUSY_INTERVAL: Duration = Duration::from_millis(100);

/// A node that has answered within so many election timeouts may receive replicas.
const REACHED_TIMEOUTS: u32 = 3;

/// A node that has given everything away stays for so many, to hear of it, to erase what it had and to answer what it was asked before.
const PARTING_TIMEOUTS: u32 = 3;

/// What comes to a node that has been silent for so many is taken back.
const GONE_TIMEOUTS: u32 = 10;

/// Governs while this node leads the meta group.
pub(in crate::raft) async fn govern(node: Arc<Node>) {
    let mut watch = Watch::default();
    loop {
        let version = node.meta().version();
        let group = node.meta().place().seated().filter(|group| group.is_leader());
        let mut pause = LOOK_INTERVAL;
        match (group, node.meta().state()) {
            (Some(group), Some(state)) => {
                if let Err(error) = look(&node, &group, &state, &mut watch).await {
                    tracing::debug!(%error, "the cluster cannot be governed now");
                }
                if !state.is_settled() {
                    pause = BUSY_INTERVAL;
                }
            }
            _ => watch = Watch::default(),
        }
        let _ = timeout(pause, node.meta().changed(version)).await;
    }
}

/// Who was silent since when, as far as this leader has watched.
#[derive(Default)]
struct Watch {
    silent: BTreeMap<NodeName, Instant>,
    /// Nodes that have given everything away, since when.
    parting: BTreeMap<NodeName, Instant>,
    /// Nodes that could not be given up, with what was said.
    told: BTreeMap<NodeName, String>,
}

impl Watch {
    /// Notes who answers; who does not stays silent since the first time.
    fn note(&mut self, state: &ClusterState, reached: &BTreeSet<NodeName>) {
        let now = Instant::now();
        self.silent.retain(|node, _| !reached.contains(node) && state.members.contains_key(node));
        for node in state.members.keys().filter(|node| !reached.contains(*node)) {
            self.silent.entry(node.clone()).or_insert(now);
        }
    }

    /// The nodes that have given everything away and are given `time` to part.
    fn parting(
        &mut self,
        state: &ClusterState,
        reached: &BTreeSet<NodeName>,
        time: Duration,
    ) -> Vec<NodeName> {
        self.parting.retain(|node, _| state.has_gone(node));
        for node in state.members.keys().filter(|node| state.has_gone(node)) {
            self.parting.entry(node.clone()).or_insert_with(Instant::now);
        }
        let stays = |(node, since): &(&NodeName, &Instant)| {
            reached.contains(*node) && since.elapsed() < time
        };
        self.parting.iter().filter(stays).map(|(node, _)| node.clone()).collect()
    }

    fn silent_for(&self, least: Duration) -> BTreeSet<NodeName> {
        let long = self.silent.iter().filter(|(_, since)| since.elapsed() >= least);
        long.map(|(node, _)| node.clone()).collect()
    }
}

async fn look(node: &Node, group: &Group, state: &ClusterState, watch: &mut Watch) -> Result<()> {
    let election_timeout = node.settings().election_timeout;
    let answering = group.answering(election_timeout * REACHED_TIMEOUTS);
    let answers = state.members.iter().filter(|(_, member)| answering.contains(&member.meta));
    let reached: BTreeSet<NodeName> = answers.map(|(name, _)| name.clone()).collect();
    watch.note(state, &reached);
    tracing::trace!(?reached, lag = ?group.status().lag, "governs");
    give_up(node, state, &reached, watch).await?;

    let gone = watch.silent_for(election_timeout * GONE_TIMEOUTS);
    if state.clone().plan(&reached, &gone) {
        node.meta().change(|state| Ok(state.plan(&reached, &gone))).await?;
    }

    let Some(membership) = group.committed_membership() else { return group.end_joint().await };
    let members = membership.membership();
    let voters = state.meta_voters(&members.voter_ids().collect());
    let mut nodes = state.meta_replicas();
    for node in watch.parting(state, &reached, election_timeout * PARTING_TIMEOUTS) {
        nodes.extend(state.members.get(&node).map(|member| (member.meta, node)));
    }
    group.step_towards(&Goal { voters, nodes }).await?;

    let members = members.nodes().map(|(replica, name)| (*replica, name.clone())).collect();
    if state.clone().forget(&members) {
        node.meta().change(|state| Ok(state.forget(&members))).await?;
    }
    Ok(())
}

/// Gives nodes up that were silent for too long, and takes those back that were given up and answer.
async fn give_up(
    node: &Node,
    state: &ClusterState,
    reached: &BTreeSet<NodeName>,
    watch: &mut Watch,
) -> Result<()> {
    let is_lost =
        |name: &&NodeName| state.members.get(*name).is_some_and(|it| it.life == Life::Lost);
    for name in reached.iter().filter(is_lost) {
        tracing::info!("node {name} answers again");
        node.meta().change(|state| state.restore(name)).await?;
    }
    let patience = Duration::from_secs(state.settings.replace_after_seconds);
    if patience.is_zero() {
        return Ok(());
    }
    for name in watch.silent_for(patience) {
        match state.clone().give_up(&name) {
            Ok(()) if is_lost(&&name) => {}
            Ok(()) => {
                tracing::warn!(
                    "node {name} was silent for {patience:?}: its replicas are made anew on other nodes"
                );
                node.meta().change(|state| state.give_up(&name)).await?;
            }
            Err(refused) => {
                let before = watch.told.insert(name.clone(), refused.0.clone());
                if before.as_ref() != Some(&refused.0) {
                    tracing::warn!(
                        "node {name} was silent for {patience:?}, and is not replaced: {refused}"
                    );
                }
            }
        }
    }
    Ok(())
}
