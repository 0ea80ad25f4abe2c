//! All groups of a node: what arrives from other nodes goes to the group it is for; logs are cut, leaders spread, failed groups noticed.
//!
//! # Invariants
//!
//! * A message reaches openraft only if it names this cluster, a group that is here and its replica here, and comes from the node that the sending replica is on.
//! * The log of a group is cut only behind a snapshot, and a snapshot is of what the engine has durably.
//! * Every group is led by its **preferred** node where that is possible: the members in order of name, taken in turns by the groups. All nodes
//!   compute the same, so leaders are spread evenly without anybody counting.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::blocking::blocking;
use super::files::remove_files;
use super::group::{Group, Settings, Status};
use super::log::{GroupLog, LogStore};
use super::message::{Envelope, Refusal, Reply, Request};
use super::place::Place;
use super::state::{ReplicaState, StateLog};
use super::transport::{Answers, Receiver};
use super::types::{GroupId, NodeName, ReplicaId};
use crate::error::{Error, Reason, Result};
use crate::storage::Environment;

/// How often logs are looked at, and leaders.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a group stays with a leader that is not the preferred one, so that a node that comes back has caught up and
/// stays before it leads.
const MOVE_AFTER: Duration = Duration::from_secs(5);

/// Snapshots that are made at a time, so that not all groups flush at once.
const SNAPSHOTS_AT_A_TIME: usize = 2;

/// When a node cuts its logs.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// Bytes of a group's entries since its last snapshot that make it due for one.
    pub snapshot_bytes: u64,
    /// Bytes of the whole log above which the group that holds the oldest part of it makes a snapshot, however little it wrote.
    pub log_bytes: u64,
}

/// The nodes of a cluster with the replica that each has in every group: those who founded it together.
pub type Members = BTreeMap<ReplicaId, NodeName>;

/// A node's groups, running.
pub struct Node {
    settings: Settings,
    members: Members,
    groups: BTreeMap<GroupId, Arc<Group>>,
    places: BTreeMap<GroupId, Arc<Place>>,
    answers: OnceLock<Arc<dyn Answers>>,
    log: Arc<LogStore>,
    limits: LogLimits,
    inbox: PathBuf,
    stopping: CancellationToken,
    /// What works for long goes on here, and not on the runtime of a connection.
    runtime: Handle,
}

impl Node {
    /// Starts the groups of `places` on `log` and `environment`, and seats them. Blocks while it opens them.
    ///
    /// # Errors
    ///
    /// What engines and the log fail with; CORRUPTION when they do not fit.
    #[expect(clippy::too_many_arguments, reason = "the parts of a node, each of them once")]
    pub async fn start(
        places: Vec<Arc<Place>>,
        members: Members,
        log: Arc<LogStore>,
        environment: Arc<dyn Environment>,
        settings: Settings,
        limits: LogLimits,
        inbox: PathBuf,
        stopping: CancellationToken,
    ) -> Result<Arc<Self>> {
        let own = members.iter().find(|(_, node)| **node == settings.node).map(|(id, _)| *id);
        let Some(replica) = own else {
            let message = format!("{} is not a member of its cluster", settings.node);
            return Err(Error::new(Reason::Internal, message));
        };
        let mut started = BTreeMap::new();
        for place in &places {
            let id = place.id();
            let group_log = log.group(id);
            let state = blocking(|| {
                ReplicaState::open(Arc::clone(&environment), id, Arc::new(group_log.clone()))
            })?;
            let group = Group::start(id, replica, group_log, state, settings.clone()).await?;
            place.set_replicas(members.clone());
            place.open(&settings);
            place.seat(Some(Arc::clone(&group)));
            started.insert(id, group);
        }
        let runtime = Handle::current();
        let places = places.into_iter().map(|place| (place.id(), place)).collect();
        Ok(Arc::new(Self {
            settings,
            members,
            groups: started,
            places,
            answers: OnceLock::new(),
            log,
            limits,
            inbox,
            stopping,
            runtime,
        }))
    }

    /// Starts what runs beside the groups: founds the new ones, cuts logs, spreads leaders.
    pub fn start_tasks(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let stopping = self.stopping.clone();
        let run = |work: BoxFuture<'static, ()>| {
            let stopping = stopping.clone();
            tokio::spawn(async move {
                let _ = stopping.run_until_cancelled(work).await;
            })
        };
        vec![
            run(Box::pin(Arc::clone(self).found_groups())),
            run(Box::pin(Arc::clone(self).cut_logs())),
            run(Box::pin(Arc::clone(self).spread_leaders())),
        ]
    }

    /// A group of this node.
    pub fn group(&self, id: GroupId) -> Option<&Arc<Group>> {
        self.groups.get(&id)
    }

    /// From here on other nodes' questions are answered, by `answers`. Once.
    pub fn answer_with(&self, answers: Arc<dyn Answers>) {
        let first = self.answers.set(answers).is_ok();
        assert!(first, "a node has one who answers");
    }

    /// The place of a group.
    pub fn place(&self, id: GroupId) -> Option<&Arc<Place>> {
        self.places.get(&id)
    }

    /// All groups of this node, in order.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.values()
    }

    /// The nodes of the cluster.
    pub const fn members(&self) -> &Members {
        &self.members
    }

    /// The state of all groups, in order.
    pub fn status(&self) -> Vec<Status> {
        self.groups.values().map(|group| group.status()).collect()
    }

    /// Hands the leadership of every group that this node leads to another node, all at once.
    pub async fn hand_over(&self) {
        join_all(self.groups.values().map(|group| group.step_down())).await;
    }

    /// Stops all groups.
    pub async fn stop(&self) {
        join_all(self.places.values().map(|place| place.close())).await;
        join_all(self.groups.values().map(|group| group.stop())).await;
    }

    /// The node that should lead a group.
    fn preferred(&self, group: GroupId) -> &NodeName {
        let position = group.0 as usize % self.members.len();
        self.members.values().nth(position).expect("the position is below the number of members")
    }

    /// Founds the groups that are new: the preferred node at once, so that it leads them; the others when it did not.
    async fn found_groups(self: Arc<Self>) {
        for own_turn in [true, false] {
            for (id, group) in &self.groups {
                let preferred = *self.preferred(*id) == self.settings.node;
                if preferred == own_turn
                    && group.is_new()
                    && let Err(error) = group.found(self.members.clone()).await
                {
                    tracing::error!(group = %id, %error, "the group was not founded");
                }
            }
            if own_turn {
                sleep(self.settings.election_timeout * 2).await;
            }
        }
    }

    /// Cuts the logs behind snapshots, and makes these: of groups that wrote much since their last one; and of the one that holds the oldest part of
    /// a log that has grown too long, which then keeps nothing behind its snapshot either.
    async fn cut_logs(self: Arc<Self>) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.log.trim();
            let grown = self
                .groups
                .values()
                .filter(|group| group.state().unflushed().bytes >= self.limits.snapshot_bytes);
            let mut due: Vec<_> = grown.take(SNAPSHOTS_AT_A_TIME).collect();
            let laggard = self.log.laggard(self.limits.log_bytes);
            if let Some(group) = laggard.and_then(|laggard| self.groups.get(&laggard))
                && due.iter().all(|other| other.id() != group.id())
            {
                due.push(group);
            }
            for (id, group) in &self.groups {
                let keep = if laggard == Some(*id) { 0 } else { self.settings.log_keep };
                group.purge(keep).await;
            }
            for group in due {
                group.snapshot().await;
            }
        }
    }

    /// Gives the groups that this node leads for another one to that, one at a time.
    async fn spread_leaders(self: Arc<Self>) {
        let mut since: BTreeMap<GroupId, Instant> = BTreeMap::new();
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = Instant::now();
            for (id, group) in &self.groups {
                let preferred = self.preferred(*id);
                if *preferred == self.settings.node || !group.is_leader() {
                    since.remove(id);
                    continue;
                }
                let begun = *since.entry(*id).or_insert(now);
                if now.duration_since(begun) < MOVE_AFTER {
                    continue;
                }
                since.insert(*id, now);
                if let Err(error) = group.hand_over_to(preferred).await {
                    tracing::debug!(group = %id, %error, "leadership stays here for now");
                }
            }
        }
    }

    /// The group that a message is for.
    fn addressed(
        &self,
        from: &NodeName,
        envelope: &Envelope,
        request: &Request,
    ) -> Result<&Arc<Group>, Refusal> {
        let refuse = |why: String| Err(Refusal::NotHere(why));
        if envelope.cluster != self.settings.cluster {
            return refuse(format!(
                "a message for cluster {} came to {}, which belongs to cluster {}",
                envelope.cluster, self.settings.node, self.settings.cluster
            ));
        }
        let Some(group) = self.groups.get(&envelope.group) else {
            return refuse(format!("{} is not on {}", envelope.group, self.settings.node));
        };
        if request.is_of_caller() && envelope.from == 0 && envelope.to == 0 {
            return Ok(group);
        }
        if self.members.get(&envelope.to) != Some(&self.settings.node) {
            return refuse(format!(
                "replica {} of {} is not on {}",
                envelope.to, envelope.group, self.settings.node
            ));
        }
        if self.members.get(&envelope.from) != Some(from) {
            return refuse(format!(
                "replica {} of {} is not on {from}, which speaks for it",
                envelope.from, envelope.group
            ));
        }
        Ok(group)
    }
}

fn malformed() -> Reply {
    Reply::Refused(Refusal::NotHere("a message of no version that this program reads".to_owned()))
}

/// What a group's state needs of its log.
impl StateLog for GroupLog {
    fn generation(&self) -> u64 {
        Self::generation(self)
    }

    fn set_generation(&self, generation: u64) -> BoxFuture<'static, std::io::Result<()>> {
        let log = self.clone();
        Box::pin(async move { Self::set_generation(&log, generation).await })
    }

    fn durable(&self, index: u64) -> BoxFuture<'static, std::io::Result<()>> {
        let log = self.clone();
        Box::pin(async move { Self::durable(&log, index).await })
    }
}

/// What other nodes reach of a node's groups.
pub struct Inbound(pub Arc<Node>);

impl Receiver for Inbound {
    fn receive(&self, from: &NodeName, message: Bytes) -> BoxFuture<'static, Bytes> {
        let reply = |reply: Reply| -> BoxFuture<'static, Bytes> {
            Box::pin(std::future::ready(reply.encode()))
        };
        let Some((envelope, request)) = Request::decode(&message) else {
            return reply(malformed());
        };
        if let Request::Ask(question) = request {
            return match self.0.answers.get() {
                Some(answers) if envelope.cluster == self.0.settings.cluster => {
                    let answer = answers.answer(from, question);
                    Box::pin(async move { Reply::Told(answer.await).encode() })
                }
                _ => {
                    let why = format!("{} answers no questions of it", self.0.settings.node);
                    reply(Reply::Refused(Refusal::NotHere(why)))
                }
            };
        }
        match self.0.addressed(from, &envelope, &request) {
            Err(refusal) => reply(Reply::Refused(refusal)),
            Ok(group) => {
                let place = Arc::clone(&self.0.places[&group.id()]);
                Box::pin(async move { place.handle(&envelope, request).await.encode() })
            }
        }
    }

    fn staging(&self, from: &NodeName, header: &Bytes) -> Result<PathBuf, Bytes> {
        let Some((envelope, request @ Request::Snapshot(_))) = Request::decode(header) else {
            return Err(malformed().encode());
        };
        self.0
            .addressed(from, &envelope, &request)
            .map_err(|refusal| Reply::Refused(refusal).encode())?;
        Ok(self.0.inbox.join(format!("{}-{}", envelope.group.0, envelope.from)))
    }

    fn received_files(
        &self,
        from: &NodeName,
        header: Bytes,
        directory: PathBuf,
    ) -> BoxFuture<'static, Bytes> {
        let node = Arc::clone(&self.0);
        let from = from.clone();
        let installed = self.0.runtime.spawn(async move {
            let reply = match Request::decode(&header) {
                Some((envelope, request @ Request::Snapshot(vote))) => {
                    match node.addressed(&from, &envelope, &request) {
                        Ok(group) => group.install(vote, &directory).await,
                        Err(refusal) => Reply::Refused(refusal),
                    }
                }
                _ => malformed(),
            };
            // Installed or not, the next attempt brings its own.
            if let Err(error) = blocking(|| remove_files(&*node.settings.fs, &directory)) {
                tracing::warn!(directory = %directory.display(), %error, "received files were not removed");
            }
            reply.encode()
        });
        Box::pin(async move {
            installed.await.unwrap_or_else(|_| {
                let why = "the node is stopping".to_owned();
                Reply::Refused(Refusal::NotHere(why)).encode()
            })
        })
    }
}
