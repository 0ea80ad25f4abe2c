//! A node's part in a cluster: meets the other members, then runs its replica of every shard.
//!
//! The ports are open before the cluster is formed, because members meet on the gRPC port and orchestrators ask the HTTP port whether the process lives. Until then every
//! operation answers NOT_SERVING and the node is not ready.
//!
//! Stop: leadership is handed over while the node still serves; then connections drain, groups stop, engines are flushed, and the log is closed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::identity::DataDirectory;
use super::membership::{Admission, Membership};
use crate::api::Member;
use crate::cluster::NodeName;
use crate::config::{Config, SyncMode};
use crate::raft::log::{LogOptions, LogStore};
use crate::raft::peers::{GrpcTransport, Local, PeerService, Sent};
use crate::raft::types::GroupId;
use crate::raft::{self, Budget, Group, Inbound, LogLimits, Node, Parts, Place, Room, Settings};
use crate::router::{Answerer, Router};
use crate::shard::Shard;
use crate::storage::Environment;
use crate::telemetry::{ComponentHealth, Status};
use crate::types::ShardId;
use crate::util::fs::{FileSystem as _, RealFileSystem};
use crate::util::time::{Clock, SystemClock};
use crate::wal;

/// Most bytes of a shard's log that a new replica gets as entries, rather than files.
const LOG_SENT_BYTES: u64 = 256 << 10;

/// Most bytes of commands that are on their way, in all groups of the node.
const BUDGET_BYTES: usize = 256 << 20;

/// What part of the reserve on disk an engine may use for what is committed; the leader refuses new commands above all of it.
const ENGINE_RESERVE_PART: u64 = 4;

/// What a node that has left says of itself.
const LEFT: &str = "this node has left its cluster and serves nothing any more; stop it";

/// What one says that others have removed.
const REMOVED: &str = "this node was removed from its cluster while it was away and serves nothing any more; stop it, empty its data directory and start it with kvstore.cluster.join under a new name";

/// A member of a cluster.
pub(super) struct Cluster {
    config: Config,
    /// Until the node has met its cluster; its members' task holds it then.
    directory: Mutex<Option<DataDirectory>>,
    local: Arc<Local>,
    transport: Arc<GrpcTransport>,
    service: PeerService,
    environment: Arc<dyn Environment>,
    log: Arc<LogStore>,
    places: Vec<Arc<Place>>,
    router: Router,
    node: Arc<OnceLock<Arc<Node>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    stopping: CancellationToken,
}

/// What the meta group is called in the node's health.
const META: &str = "meta group";

/// Entries that a replica may lag behind its own log and still be ready: more than wait under any load, few enough to be applied within a second.
const APPLY_LAG_MAX: u64 = 10_000;

impl Cluster {
    /// Opens the log of a member whose data directory is `directory`. Blocks. Called on the runtime that its tasks shall run on.
    pub(super) fn open(
        config: &Config,
        directory: DataDirectory,
        local: Arc<Local>,
        environment: Arc<dyn Environment>,
        stopping: CancellationToken,
    ) -> Result<Self, Error> {
        let data = &config.storage.data_dir;
        if config.storage.sync != SyncMode::Always {
            tracing::warn!(
                "kvstore.storage.sync is not heeded in a cluster: its log is always synced"
            );
        }
        for name in ["in", "out"] {
            let path = snapshots(data, name);
            remove_directory(&path).map_err(|source| Error::file("clear", &path, source))?;
            let created = RealFileSystem.create_dir_all(&path);
            created.map_err(|source| Error::file("create", &path, source))?;
        }
        let path = data.join("raft");
        let log = LogStore::open(Arc::new(RealFileSystem), path, LogOptions::new(rand::random()))
            .map_err(|error| Error::Storage(error.to_string()))?;
        let age = config.http2.connection_age;
        let service =
            PeerService::new(Arc::clone(&local), Arc::new(RealFileSystem), age, stopping.clone());
        let rate = config.cluster.move_rate;
        let transport =
            Arc::new(GrpcTransport::new(Arc::clone(&local), Arc::new(RealFileSystem), rate));
        let places: Vec<_> =
            (0..config.hash_ring.shards).map(|id| Place::new(GroupId(id))).collect();
        let shard =
            |place: &Arc<Place>| Shard::replicated(ShardId(place.id().0), Arc::clone(place));
        let router = Router::new(places.iter().map(shard).collect());
        Ok(Self {
            config: config.clone(),
            directory: Mutex::new(Some(directory)),
            local,
            transport,
            service,
            environment,
            log: Arc::new(log),
            places,
            router,
            node: Arc::default(),
            tasks: Mutex::default(),
            stopping,
        })
    }

    /// Routes to the cluster's shards; it serves once [`Self::join`] has returned.
    pub(super) fn router(&self) -> Router {
        self.router.clone()
    }

    /// What peers call.
    pub(super) fn service(&self) -> PeerService {
        self.service.clone()
    }

    /// What clients and operators see.
    pub(super) fn view(self: &Arc<Self>) -> Member {
        let transport = Arc::clone(&self.transport);
        Member::new(
            NodeName(self.config.node.id.clone()),
            Arc::clone(&self.node),
            move |node: &NodeName| transport.reaches(node),
        )
    }

    /// How the log of the groups stands.
    pub(super) fn log(&self) -> wal::Status {
        self.log.status().wal
    }

    /// What was sent to other nodes.
    pub(super) fn sent(&self) -> &Sent {
        self.transport.sent()
    }

    /// Meets the other members, then starts the groups.
    ///
    /// # Errors
    ///
    /// When this node cannot be a member as it is set up, or its data is damaged: the process has to end.
    pub(super) async fn join(self: Arc<Self>, grpc_port: u16) -> Result<(), Error> {
        let config = &self.config;
        let membership = Membership::new(config, grpc_port, &self.local)?;
        let directory = self.directory.lock().take().expect("a node joins once");
        let (directory, formed, origin) = membership.found_or_join(directory).await?;
        let data = &config.storage.data_dir;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let settings = Settings {
            cluster: formed.cluster,
            node: NodeName(config.node.id.clone()),
            election_timeout: config.raft.election_timeout,
            heartbeat_interval: config.raft.heartbeat_interval,
            log_keep: config.raft.log_keep,
            log_sent_bytes: LOG_SENT_BYTES,
            stale_max: config.raft.stale_max,
            follower_reads: config.raft.follower_reads,
            budget: Budget::new(BUDGET_BYTES),
            room: Arc::new(Room::new(
                Arc::new(RealFileSystem),
                data.clone(),
                config.storage.disk_free_min,
            )),
            transport: Arc::clone(&self.transport) as _,
            clock,
            outbox: snapshots(data, "out"),
            fs: Arc::new(RealFileSystem),
        };
        let limits = LogLimits {
            snapshot_bytes: config.raft.snapshot_log_size,
            log_bytes: config.raft.log_max_size,
        };
        let node = Node::start(Parts {
            places: self.places.clone(),
            origin,
            log: Arc::clone(&self.log),
            environment: Arc::clone(&self.environment),
            settings,
            limits,
            directory: data.clone(),
            inbox: snapshots(data, "in"),
            stopping: self.stopping.clone(),
        });
        let node = node.await.map_err(|error| Error::Storage(error.to_string()))?;
        node.answer_with(Arc::new(Answerer::new(self.router())));
        assert!(self.node.set(Arc::clone(&node)).is_ok(), "a node joins once");
        self.service.receive_with(Arc::new(Inbound(Arc::clone(&node))));
        let mut tasks = node.start_tasks();
        self.service.admit_with(Arc::new(Admission(Arc::clone(&node))));
        tasks.extend(membership.start_tasks(formed.cluster, directory, node, &self.stopping));
        *self.tasks.lock() = tasks;
        tracing::info!(
            cluster = %formed.cluster,
            members = crate::cluster::list(formed.members.keys()),
            "joined the cluster"
        );
        Ok(())
    }

    /// Whether every shard that the cluster wants here is here, works, and knows its leader.
    pub(super) fn is_ready(&self) -> bool {
        if self.local.is_expelled() {
            return false;
        }
        self.node.get().is_some_and(|node| {
            let (Some(state), own) = (node.meta().state(), node.name()) else { return false };
            let works = |group: &Arc<Group>| {
                let status = group.status();
                status.failed.is_none() && status.leader.is_some()
            };
            let is_in_place = |place: &Arc<Place>| {
                // One that only comes yet is missed by nobody.
                let votes = || {
                    let shard = state.shards.get(place.id().0 as usize);
                    shard.is_some_and(|shard| shard.voters.values().any(|node| node == own))
                };
                place.seated().map_or_else(|| !votes(), |group| works(&group))
            };
            !state.has_gone(own) && node.places().iter().all(is_in_place)
        })
    }

    /// The health of every shard that is here, by name, and of the meta group.
    pub(super) fn health(&self) -> ComponentHealth {
        let waits = |reason: &str| {
            ComponentHealth::new(Status::OutOfService).detail("reason", reason.to_owned())
        };
        if self.local.is_expelled() {
            return waits(REMOVED);
        }
        let Some(node) = self.node.get() else {
            return waits("this node has not met all members of its cluster yet");
        };
        let Some(state) = node.meta().state() else {
            return waits("this node has not heard yet what its cluster has agreed on");
        };
        if state.has_gone(node.name()) {
            return waits(LEFT);
        }
        let shards = node
            .status()
            .into_iter()
            .map(|status| (ShardId(status.group.0).to_string(), shard_health(status)));
        let meta = node.group(GroupId::META).map(|group| shard_health(group.status()));
        let meta = meta.map(|health| (META.to_owned(), health));
        ComponentHealth::composite(shards.chain(meta).collect::<BTreeMap<_, _>>())
    }

    /// Returns when this node has left its cluster, and what to do about it: it has no shards any more, and soon nobody speaks to it; or it was removed while it was away.
    pub(super) async fn gone(&self) -> &'static str {
        let Some(node) = self.node.get() else { return std::future::pending().await };
        let meta = node.meta();
        let left = async {
            loop {
                let version = meta.version();
                if meta.state().is_some_and(|state| state.has_gone(node.name())) {
                    return;
                }
                meta.changed(version).await;
            }
        };
        tokio::select! {
            () = left => LEFT,
            () = self.local.expelled() => REMOVED,
        }
    }

    /// Hands the leadership of all shards to other nodes.
    pub(super) async fn hand_over(&self) {
        if let Some(node) = self.node.get() {
            node.hand_over().await;
        }
    }

    /// Stops the groups. Nothing arrives any more.
    pub(super) async fn stop(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // It ends with the token; a panic was reported by its hook.
            let _ = task.await;
        }
        if let Some(node) = self.node.get() {
            node.stop().await;
        }
    }
}

/// How a shard is on this node.
fn shard_health(status: raft::Status) -> ComponentHealth {
    let lag = status.last_index.saturating_sub(status.applied_index);
    let how = if status.failed.is_some() || status.leader.is_none() {
        Status::Down
    } else if lag > APPLY_LAG_MAX {
        Status::OutOfService
    } else {
        Status::Up
    };
    let mut health = ComponentHealth::new(how)
        .detail("role", if status.leads { "leader" } else { "follower" })
        .detail("term", status.term)
        .detail("lastIndex", status.last_index)
        .detail("appliedIndex", status.applied_index);
    if how == Status::OutOfService {
        health = health.detail("reason", format!("{lag} entries of the log are to be applied yet"));
    }
    if let Some(leader) = status.leader {
        health = health.detail("leader", leader.0);
    }
    if let Some(why) = status.failed {
        health = health.detail("error", why);
    }
    health
}

/// The part of the reserve on disk that an engine in a cluster keeps.
pub(super) const fn engine_reserve(free_min: u64) -> u64 {
    free_min / ENGINE_RESERVE_PART
}

fn snapshots(data: &Path, direction: &str) -> PathBuf {
    data.join("snapshots").join(direction)
}

fn remove_directory(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_has_much_to_apply_is_not_ready() {
        let status = |applied_index, leader: bool| raft::Status {
            group: GroupId(3),
            leader: leader.then(|| NodeName("n2".to_owned())),
            leads: false,
            term: 7,
            replicas: BTreeMap::new(),
            lag: BTreeMap::new(),
            last_index: 50_000,
            applied_index,
            snapshot_index: 0,
            copies: BTreeMap::new(),
            failed: None,
        };
        let health = |status| shard_health(status).status;
        assert_eq!(health(status(50_000, true)), Status::Up);
        assert_eq!(health(status(50_000 - APPLY_LAG_MAX, true)), Status::Up);
        assert_eq!(health(status(50_000 - APPLY_LAG_MAX - 1, true)), Status::OutOfService);
        assert_eq!(health(status(0, false)), Status::Down);
        let failed = raft::Status { failed: Some("a disk".to_owned()), ..status(50_000, true) };
        assert_eq!(shard_health(failed).details["error"], "a disk");
    }
}
