//! All groups of a node: which replicas are here, and what arrives for them from other nodes; logs are cut, leaders spread.
//!
//! # Invariants
//!
//! * A message reaches openraft only if it names this cluster, a group that is here and its replica here, and does not come from another node than the one that the
//!   sending replica is known to be on.
//! * What is here follows from what the cluster has agreed on (`cluster/state.rs`) and is written down first (`replicas.rs`). A replica is made when any state that
//!   this node has seen wants it here, which at worst is one that nobody sends to; it is erased only when a state that a quorum has just confirmed does not name it.
//! * The log of a group is cut only behind a snapshot, and a snapshot is of what the engine has durably.
//! * Every group is led by its **preferred** node where that is possible: the first one of its placement that votes. All nodes compute the same, so leaders are
//!   spread evenly without anybody counting.
//!
//! | what | where |
//! |---|---|
//! | start, stop, who is here | this file |
//! | replicas that come and go | `seats` |
//! | what arrives | `inbound` |
//! | logs and leaders | `upkeep` |

mod inbound;
mod seats;
mod upkeep;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use self::inbound::Inbound;
use self::seats::Founding;
use super::blocking::blocking;
use super::controller;
use super::group::{Group, Settings, Status};
use super::log::LogStore;
use super::meta::{self, Meta};
use super::place::Place;
use super::replicas::ReplicaTable;
use super::transport::Answers;
use super::types::{GroupId, NodeName, ReplicaId};
use crate::cluster::{ClusterState, Replicas};
use crate::error::{Error, Reason, Result};
use crate::storage::Environment;
use crate::util::fs::FileSystem;

/// When a node cuts its logs.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// Bytes of a group's entries since its last snapshot that make it due for one.
    pub snapshot_bytes: u64,
    /// Bytes of the whole log above which the group that holds the oldest part of it makes a snapshot, however little it wrote.
    pub log_bytes: u64,
}

/// How a node came to its cluster.
#[derive(Debug, Clone)]
pub enum Origin {
    /// It is one of those that found it: the voters of the meta group, and the state that the cluster begins with. Harmless when it was founded long ago.
    Founder {
        /// Its replica of the meta group.
        meta: ReplicaId,
        /// Who votes first in the meta group.
        voters: Replicas,
        /// What the cluster begins with.
        state: Box<ClusterState>,
    },
    /// It was admitted, with this replica of the meta group.
    Newcomer {
        /// See above.
        meta: ReplicaId,
    },
    /// It was a member before, with a replica of the meta group.
    Member,
}

/// What a node is made of.
pub struct Parts {
    /// The shards, in order.
    pub places: Vec<Arc<Place>>,
    /// How the node came here.
    pub origin: Origin,
    /// The log of all groups.
    pub log: Arc<LogStore>,
    /// The engines of all groups.
    pub environment: Arc<dyn Environment>,
    /// What all groups have in common.
    pub settings: Settings,
    /// When logs are cut.
    pub limits: LogLimits,
    /// Where the table of replicas is.
    pub directory: PathBuf,
    /// Where snapshots arrive.
    pub inbox: PathBuf,
    /// Ends the node's tasks.
    pub stopping: CancellationToken,
}

type Groups = BTreeMap<GroupId, Arc<Group>>;

/// A node's groups, running.
pub struct Node {
    settings: Settings,
    places: Vec<Arc<Place>>,
    answers: OnceLock<Arc<dyn Answers>>,
    meta: Arc<Meta>,
    log: Arc<LogStore>,
    environment: Arc<dyn Environment>,
    limits: LogLimits,
    inbox: PathBuf,
    stopping: CancellationToken,
    /// What works for long goes on here, and not on the runtime of a connection.
    runtime: Handle,
    /// All that are here, the meta group among them. Only the task in `seats` exchanges it.
    groups: ArcSwap<Groups>,
    table: Mutex<ReplicaTable>,
    founding: Option<Founding>,
}

impl Node {
    /// Starts the groups whose replicas are here, and seats them. Blocks while it opens them.
    ///
    /// # Errors
    ///
    /// What engines and the log fail with; CORRUPTION when they do not fit.
    pub async fn start(parts: Parts) -> Result<Arc<Self>> {
        let Parts { places, origin, log, environment, settings, limits, .. } = parts;
        let fs: Arc<dyn FileSystem> = Arc::clone(&settings.fs);
        let table = blocking(|| ReplicaTable::open(fs, parts.directory));
        let table = table.map_err(damaged)?;
        let patience = settings.election_timeout * meta::PATIENCE_TIMEOUTS;
        let (meta_replica, founding) = match origin {
            Origin::Founder { meta, voters, state } => {
                (Some(meta), Some(Founding { voters, state }))
            }
            Origin::Newcomer { meta } => (Some(meta), None),
            Origin::Member => (None, None),
        };
        let node = Arc::new(Self {
            meta: Arc::new(Meta::new(Place::new(GroupId::META), patience)),
            settings,
            places,
            answers: OnceLock::new(),
            log,
            environment,
            limits,
            inbox: parts.inbox,
            stopping: parts.stopping,
            runtime: Handle::current(),
            groups: ArcSwap::default(),
            table: Mutex::new(table),
            founding,
        });
        for place in node.all_places() {
            place.open(&node.settings);
        }
        node.open_held(meta_replica).await?;
        Ok(node)
    }

    /// Whether the node of the data directory has a replica of the meta group: then it was a member before.
    pub fn holds_meta(fs: &Arc<dyn FileSystem>, directory: &Path) -> Result<bool> {
        let table = ReplicaTable::open(Arc::clone(fs), directory.to_owned()).map_err(damaged)?;
        Ok(table.replica(GroupId::META).is_some())
    }

    /// Starts what runs beside the groups.
    pub fn start_tasks(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let stopping = self.stopping.clone();
        let run = |work: BoxFuture<'static, ()>| {
            let stopping = stopping.clone();
            tokio::spawn(async move {
                let _ = stopping.run_until_cancelled(work).await;
            })
        };
        vec![
            run(Box::pin(Arc::clone(&self.meta).follow(self.settings.election_timeout))),
            run(Box::pin(Arc::clone(self).keep_seats())),
            run(Box::pin(Arc::clone(self).cut_logs())),
            run(Box::pin(Arc::clone(self).spread_leaders())),
            run(Box::pin(controller::move_replicas(Arc::clone(self)))),
            run(Box::pin(controller::govern(Arc::clone(self)))),
        ]
    }

    /// The name of this node.
    pub const fn name(&self) -> &NodeName {
        &self.settings.node
    }

    /// What all its groups have in common.
    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the cluster has agreed on.
    pub const fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    /// A group that is here.
    pub fn group(&self, id: GroupId) -> Option<Arc<Group>> {
        self.groups.load().get(&id).cloned()
    }

    /// The shards' groups that are here, in order.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        let groups = self.groups.load();
        groups.values().filter(|group| group.id() != GroupId::META).cloned().collect()
    }

    /// From here on other nodes' questions are answered, by `answers`. Once.
    pub fn answer_with(&self, answers: Arc<dyn Answers>) {
        let first = self.answers.set(answers).is_ok();
        assert!(first, "a node has one who answers");
    }

    /// The place of a group.
    pub fn place(&self, id: GroupId) -> Option<&Arc<Place>> {
        match id {
            GroupId::META => Some(self.meta.place()),
            GroupId(number) => self.places.get(number as usize),
        }
    }

    /// The shards, whether a replica is here or not, in order.
    pub fn places(&self) -> &[Arc<Place>] {
        &self.places
    }

    /// The state of the shards' groups that are here, in order.
    pub fn status(&self) -> Vec<Status> {
        self.groups().iter().map(|group| group.status()).collect()
    }

    /// Hands the leadership of every group that this node leads to another node, all at once.
    pub async fn hand_over(&self) {
        let groups = self.groups.load_full();
        join_all(groups.values().map(|group| group.step_down())).await;
    }

    fn all_places(&self) -> impl Iterator<Item = &Arc<Place>> {
        self.places.iter().chain([self.meta.place()])
    }

    /// Stops all groups.
    pub async fn stop(&self) {
        join_all(self.all_places().map(|place| place.close())).await;
        let groups = self.groups.load_full();
        join_all(groups.values().map(|group| group.stop())).await;
    }
}

fn damaged(error: std::io::Error) -> Error {
    Error::new(Reason::Corruption, error.to_string())
}
