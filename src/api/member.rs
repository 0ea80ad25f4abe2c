//! [`Operate`] for a member of a cluster: what the cluster has agreed on (`cluster/state`), and what this node sees of its groups.
//!
//! What is asked for is a transition of the state, and decided when the meta group has it; the controller (`raft/controller`) does the rest.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::ready;
use parking_lot::Mutex;

use super::cluster::{Asked, Operate, refused};
use crate::cluster::{Change, ClusterState, Life, Refused, Shard, list};
use crate::error::{Error, Reason, Result};
use crate::proto::admin::{
    self, ClusterSettings, ListNodesResponse, ShardChange, UpdateClusterSettingsRequest,
};
use crate::proto::v1::{GetRingResponse, RingNode, RingShard};
use crate::raft::types::{GroupId, NodeName};
use crate::raft::{self, Status};
use crate::types::ShardId;

/// How long a ring is kept before the groups are asked again who leads them.
const RING_KEPT: Duration = Duration::from_millis(500);

/// A member of a cluster, as clients and operators see it.
pub struct Member {
    own: NodeName,
    /// The node, once it has met its cluster.
    node: Arc<OnceLock<Arc<raft::Node>>>,
    reaches: Box<dyn Fn(&NodeName) -> bool + Send + Sync>,
    kept: Mutex<Option<(Instant, Arc<GetRingResponse>)>>,
}

/// A change of the cluster's state.
type Transition = Box<dyn FnMut(&mut ClusterState) -> std::result::Result<(), Refused> + Send>;

impl Member {
    /// The member `own`, which is `node` once it has met its cluster; `reaches` tells whether another node can be reached now.
    pub fn new(
        own: NodeName,
        node: Arc<OnceLock<Arc<raft::Node>>>,
        reaches: impl Fn(&NodeName) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { own, node, reaches: Box::new(reaches), kept: Mutex::new(None) }
    }

    fn node(&self) -> Result<&Arc<raft::Node>> {
        self.node.get().ok_or_else(not_met)
    }

    fn state(&self) -> Result<Arc<ClusterState>> {
        self.node()?.meta().state().ok_or_else(not_met)
    }

    fn is_up(&self, node: &NodeName) -> bool {
        *node == self.own || (self.reaches)(node)
    }

    /// Has the cluster agree on `transition`.
    fn ask(&self, transition: Transition) -> Asked<()> {
        match self.node() {
            Ok(node) => {
                let meta = Arc::clone(node.meta());
                async move { meta.change(transition).await }.boxed()
            }
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    /// The node that leads a shard, as far as this one knows; the one that should, otherwise.
    fn leader(state: &ClusterState, shard: ShardId, seen: Option<&Status>) -> Option<NodeName> {
        let known = seen.and_then(|status| status.leader.clone());
        known.or_else(|| state.preferred_leader(shard).cloned())
    }

    fn seen(&self) -> BTreeMap<u32, Status> {
        let seen = self.node().map(|node| node.status()).unwrap_or_default();
        seen.into_iter().map(|status| (status.group.0, status)).collect()
    }

    fn make_ring(&self) -> GetRingResponse {
        let (Ok(node), Ok(state)) = (self.node(), self.state()) else {
            return GetRingResponse { epoch: 1, ..GetRingResponse::default() };
        };
        let seen = self.seen();
        let index = |name: &NodeName| {
            u32::try_from(state.members.keys().position(|member| member == name)?).ok()
        };
        let indexes: BTreeMap<&NodeName, u32> =
            state.members.keys().filter_map(|name| Some((name, index(name)?))).collect();
        let placement = |(id, shard): (ShardId, &Shard)| {
            let leader = Self::leader(&state, id, seen.get(&id.0));
            RingShard {
                shard: id.0,
                leader: leader.and_then(|name| indexes.get(&name).copied()),
                replicas: shard
                    .voters
                    .values()
                    .filter_map(|name| indexes.get(name).copied())
                    .collect(),
            }
        };
        let nodes = state.members.iter().map(|(name, member)| RingNode {
            id: name.0.clone(),
            address: member.address.clone(),
            up: self.is_up(name),
        });
        GetRingResponse {
            epoch: node.meta().version().max(1),
            shards: state.shard_count(),
            nodes: nodes.collect(),
            placements: state.numbered().map(placement).collect(),
        }
    }

    fn describe(
        &self,
        name: &NodeName,
        state: &ClusterState,
        leaders: &[Option<NodeName>],
        meta_voters: &[u64],
    ) -> admin::Node {
        let member = &state.members[name];
        let is_on = |shard: &&Shard| shard.replicas().any(|(_, node)| node == name);
        let holds = |shard: &Shard| shard.voters.values().any(|node| node == name);
        let pairs = state.shards.iter().zip(&state.placement.shards);
        let moving = pairs.filter(|(shard, wanted)| holds(shard) != wanted.contains(name)).count();
        let up = self.is_up(name);
        let (word, detail) = match member.life {
            Life::Member if up => ("up", String::new()),
            Life::Member => ("down", "its shards go on without it".to_owned()),
            Life::Draining => ("draining", format!("{moving} replicas have yet to leave")),
            Life::Leaving => ("leaving", format!("{moving} replicas have yet to leave")),
            Life::Lost => ("lost", format!("{moving} replicas are made anew on other nodes")),
        };
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        admin::Node {
            id: name.0.clone(),
            address: member.address.clone(),
            state: word.to_owned(),
            replicas: count(state.shards.iter().filter(is_on).count()),
            leaders: count(leaders.iter().flatten().filter(|leader| *leader == name).count()),
            zone: member.zone.as_ref().map(|zone| zone.0.clone()).unwrap_or_default(),
            weight: member.weight.0.into(),
            moving: count(moving),
            meta_voter: meta_voters.contains(&member.meta),
            detail,
        }
    }
}

impl Operate for Member {
    fn ring(&self) -> Arc<GetRingResponse> {
        let version = self.node().map_or(0, |node| node.meta().version());
        let mut kept = self.kept.lock();
        match &*kept {
            Some((made, ring)) if made.elapsed() < RING_KEPT && ring.epoch == version => {
                Arc::clone(ring)
            }
            _ => {
                let ring = Arc::new(self.make_ring());
                *kept = Some((Instant::now(), Arc::clone(&ring)));
                ring
            }
        }
    }

    fn epoch(&self) -> u64 {
        self.node().map_or(1, |node| node.meta().version().max(1))
    }

    fn nodes(&self) -> ListNodesResponse {
        let Ok(state) = self.state() else { return ListNodesResponse::default() };
        let seen = self.seen();
        let leader = |(id, _): (ShardId, &Shard)| Self::leader(&state, id, seen.get(&id.0));
        let leaders: Vec<_> = state.numbered().map(leader).collect();
        let meta = self.node.get().and_then(|node| node.group(GroupId::META));
        let meta_voters = meta.map(|group| group.voters()).unwrap_or_default();
        let nodes = state.members.keys();
        ListNodesResponse {
            nodes: nodes.map(|name| self.describe(name, &state, &leaders, &meta_voters)).collect(),
            epoch: state.placement.epoch.0,
        }
    }

    fn shards(&self) -> Vec<admin::Shard> {
        let Ok(state) = self.state() else { return Vec::new() };
        let seen = self.seen();
        let names = |replicas: &crate::cluster::Replicas| -> Vec<String> {
            let mut names: Vec<_> = replicas.values().map(|node| node.0.clone()).collect();
            names.sort_unstable();
            names
        };
        let shard = |(id, shard): (ShardId, &Shard)| {
            let status = seen.get(&id.0);
            let mut replicas = shard.voters.clone();
            replicas.extend(shard.learners.clone());
            admin::Shard {
                id: id.0,
                leader: Self::leader(&state, id, status).map(|node| node.0).unwrap_or_default(),
                replicas: names(&replicas),
                voters: names(&shard.voters),
                learners: names(&shard.learners),
                target: state.placement.nodes(id).iter().map(|node| node.0.clone()).collect(),
                change: shard.change.as_ref().map(|change| describe_change(shard, change, status)),
                ..admin::Shard::default()
            }
        };
        state.numbered().map(shard).collect()
    }

    fn move_leader(&self, shard: ShardId, to: NodeName) -> Asked<()> {
        let (node, state) = match (self.node(), self.state()) {
            (Ok(node), Ok(state)) => (node, state),
            (Err(error), _) | (_, Err(error)) => return ready(Err(error)).boxed(),
        };
        if !state.members.contains_key(&to) {
            let names = list(state.members.keys());
            return refused(format!("there is no node {to}; the members are {names}"));
        }
        let Some(place) = node.places().get(shard.0 as usize).cloned() else {
            let count = state.shard_count();
            return refused(format!(
                "there is no {shard}; this cluster has {count} shards, from 0"
            ));
        };
        async move { place.move_leader(&to).await }.boxed()
    }

    fn add(&self, name: NodeName, address: String) -> Asked<String> {
        let state = match self.state() {
            Ok(state) => state,
            Err(error) => return ready(Err(error)).boxed(),
        };
        if state.members.contains_key(&name) {
            let restored = self.ask(Box::new(move |state| state.restore(&name)));
            return async move { restored.await.map(|()| String::new()) }.boxed();
        }
        let (host, port) = address.rsplit_once(':').unwrap_or((&address, "9090"));
        let up = state.members.iter().filter(|(name, _)| self.is_up(name));
        let seeds: Vec<&str> = up.take(3).map(|(_, member)| member.address.as_str()).collect();
        let command = format!(
            "NODE_ID={name} NODE_HOST={host} KVSTORE_GRPC_PORT={port} KVSTORE_CLUSTER_JOIN={} kvstore serve",
            seeds.join(",")
        );
        ready(Ok(command)).boxed()
    }

    fn remove(&self, name: NodeName, force: bool) -> Asked<()> {
        let is_member = self.state().is_ok_and(|state| state.members.contains_key(&name));
        if is_member && !force && !self.is_up(&name) {
            return refused(format!(
                "node {name} cannot be reached, so that nothing can be copied from it; start it, or, when it is lost for good, remove it with --force: the other nodes make its replicas anew"
            ));
        }
        self.ask(Box::new(move |state| state.remove(&name)))
    }

    fn drain(&self, name: NodeName) -> Asked<()> {
        self.ask(Box::new(move |state| state.drain(&name)))
    }

    fn replace(&self, name: NodeName, by: NodeName) -> Asked<()> {
        self.ask(Box::new(move |state| state.replace(&name, &by)))
    }

    fn settings(&self) -> Result<ClusterSettings> {
        let settings = &self.state()?.settings;
        Ok(ClusterSettings {
            replication_factor: settings.replication_factor,
            replace_after_seconds: u32::try_from(settings.replace_after_seconds)
                .unwrap_or(u32::MAX),
            moves_max: settings.moves_max,
        })
    }

    fn change_settings(&self, change: UpdateClusterSettingsRequest) -> Asked<ClusterSettings> {
        let node = match self.node() {
            Ok(node) => Arc::clone(node.meta()),
            Err(error) => return ready(Err(error)).boxed(),
        };
        async move {
            let changed = node.change(|state| {
                let mut settings = state.settings.clone();
                if let Some(replicas) = change.replication_factor {
                    settings.replication_factor = replicas;
                }
                if let Some(seconds) = change.replace_after_seconds {
                    settings.replace_after_seconds = seconds.into();
                }
                if let Some(moves) = change.moves_max {
                    settings.moves_max = moves;
                }
                state.set(settings)?;
                Ok(state.settings.clone())
            });
            let settings = changed.await?;
            Ok(ClusterSettings {
                replication_factor: settings.replication_factor,
                replace_after_seconds: u32::try_from(settings.replace_after_seconds)
                    .unwrap_or(u32::MAX),
                moves_max: settings.moves_max,
            })
        }
        .boxed()
    }
}

/// What moves, and how far it is as far as this node sees: only the leader knows what a replica lacks. First come files, if the log does not go back far enough, then entries.
fn describe_change(shard: &Shard, change: &Change, status: Option<&Status>) -> ShardChange {
    let to = change.add.as_ref();
    let from = change.remove.and_then(|replica| shard.voters.get(&replica));
    let votes = to.is_none_or(|(replica, _)| shard.voters.contains_key(replica));
    let behind = status.and_then(|status| {
        let lag = (*status.lag.get(&to?.0)?)?;
        Some((lag, status.last_index.max(1)))
    });
    let copied = status.and_then(|status| status.copies.get(&to?.0));
    #[expect(clippy::cast_precision_loss, reason = "a part, for people")]
    let part = |done: u64, of: u64| done.min(of) as f64 / of.max(1) as f64;
    let (entries_behind, progress) = match (behind, copied) {
        (_, Some(copied)) => (0, part(copied.bytes, copied.of)),
        (Some((lag, last)), None) => (lag, part(last.saturating_sub(lag), last)),
        (None, None) => (0, 0.0),
    };
    let step = match (votes, entries_behind) {
        (true, _) => "leaving",
        (false, 0) if behind.is_some() && copied.is_none() => "joining",
        (false, _) => "copying",
    };
    ShardChange {
        from: from.map(|node| node.0.clone()).unwrap_or_default(),
        to: to.map(|(_, node)| node.0.clone()).unwrap_or_default(),
        step: step.to_owned(),
        entries_behind,
        progress,
        seconds_left: copied.and_then(|copied| copied.left).map(|left| left.as_secs_f64()),
    }
}

fn not_met() -> Error {
    let message = "this node has not met its cluster yet";
    Error::new(Reason::NotServing, message)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::raft::Copied;

    /// What the leader tells of replica 7, which comes, when it lacks `lag` of 200 entries.
    fn told(lag: Option<u64>, copied: Option<Copied>) -> ShardChange {
        let change = Change { add: Some((7, "n4".into())), remove: Some(1), cancelled: false };
        let shard = Shard { voters: [(1, "n1".into())].into(), ..Shard::default() };
        let status = Status {
            lag: [(7, lag)].into(),
            copies: copied.map(|copied| (7, copied)).into_iter().collect(),
            last_index: 200,
            ..Status::default()
        };
        describe_change(&shard, &change, Some(&status))
    }

    #[test]
    fn a_replica_that_gets_files_is_as_far_as_they_are() {
        let copied = Copied { bytes: 250, of: 1_000, left: Some(Duration::from_secs(30)) };
        let change = told(None, Some(copied));
        assert_eq!((change.from.as_str(), change.to.as_str()), ("n1", "n4"));
        assert_eq!((change.step.as_str(), change.progress), ("copying", 0.25));
        assert_eq!((change.entries_behind, change.seconds_left), (0, Some(30.0)));
    }

    #[test]
    fn a_replica_that_gets_entries_is_as_far_as_its_log_and_joins_when_it_has_all() {
        let change = told(Some(50), None);
        assert_eq!((change.step.as_str(), change.progress), ("copying", 0.75));
        assert_eq!((change.entries_behind, change.seconds_left), (50, None));
        assert_eq!(told(Some(0), None).step, "joining");
        let unknown = told(None, None);
        assert_eq!((unknown.step.as_str(), unknown.progress), ("copying", 0.0));
    }
}
