//! One replica of a group on this node, running: appends commands as leader, confirms reads, answers the other replicas. It comes and goes while its node runs; what the
//! node keeps for the shard is its place (`place/`).
//!
//! # Promises
//!
//! * An entry that is answered with its outcomes is committed by a majority and applied here ([`Group::submit`]).
//! * A read that begins after [`Group::confirm`] returned sees everything that was acknowledged before the call, on every replica.
//! * Errors say what happened: NO_LEADER, NO_QUORUM, OVERLOADED, DISK_FULL and NOT_SERVING mean "certainly not applied".
//! * A replica that was recovered from disk votes for nobody until an election timeout has passed (the boot quarantine): it may have promised, just before
//!   it went down, to wait for the leader whose lease reads trust. When that leader itself asks for the election, to hand over, there is nothing to wait for.
//!
//! # Failures
//!
//! | what | what happens |
//! |---|---|
//! | openraft's task for the group ends: a failed disk, a panic | [`Status::failed`] says why; every call is refused; the node is not healthy |
//! | the leader is dead or cut off | commands and reads wait for the next one, for as long as [`Settings::patience`]; then NO_LEADER |
//! | this node is cut off | the same: what it would answer alone could be old |
//!
//! # Tasks
//!
//! One that confirms reads, one that gives signs of life, one that ends the quarantine; openraft's own beside them. They end with [`Group::stop`].

mod cut;
mod inbound;
mod membership;
mod settings;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::async_runtime::{Instant as _, WatchReceiver as _};
use openraft::errors::RaftError;
use openraft::raft::linearizable_read::LinearizerOption;
use openraft::{Raft, ReadPolicy, ServerState};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

pub(super) use self::membership::{Goal, Step};
pub use self::settings::Settings;
pub(super) use self::writes::Attempt;
use super::log::GroupLog;
use super::message::{Envelope, Refusal, Reply, Request};
use super::network::{Copies, Network};
use super::pace::{Leads, Pace};
use super::planted::{self, Bug};
use super::progress::Copied;
use super::reads::{ReadIndex, Reads};
use super::state::{ReplicaState, StateMachine};
use super::transport::Lane;
use super::types::{GroupId, LogId, NodeName, ReplicaId, TypeConfig, next_beat};
use crate::error::{Error, Reason, Result};
use crate::storage::{Reader, StorageEngine};
use crate::util::time::Timestamp;

/// How long to wait before a command or read is tried again that met no leader.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// How much of a group's time replicas may forget that restart one after the other while nobody writes.
const CLOCK_KEPT_EVERY: Duration = Duration::from_mins(1);

/// Most entries in an append request; their bytes are bounded by the log's reader.
const APPEND_ENTRIES_MAX: u64 = 2048;

type OpenRaft = Raft<TypeConfig, StateMachine>;

/// A group's state as operators see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Which group.
    pub group: GroupId,
    /// The node that leads it, as far as this one knows.
    pub leader: Option<NodeName>,
    /// Whether this node leads it.
    pub leads: bool,
    /// The term.
    pub term: u64,
    /// The nodes that hold a copy, by replica.
    pub replicas: BTreeMap<ReplicaId, NodeName>,
    /// How many entries each other replica lacks; known to the leader only.
    pub lag: BTreeMap<ReplicaId, Option<u64>>,
    /// Snapshots that are sent to other replicas now; known to the leader only.
    pub copies: BTreeMap<ReplicaId, Copied>,
    /// Index of the last entry of the log here.
    pub last_index: u64,
    /// Index of the last entry applied here.
    pub applied_index: u64,
    /// Index of the last entry that a snapshot covers here.
    pub snapshot_index: u64,
    /// Why the group does no more work on this node.
    pub failed: Option<String>,
}

/// A replica that runs. See the [module](self).
pub struct Group {
    id: GroupId,
    replica: ReplicaId,
    settings: Settings,
    raft: OpenRaft,
    log: GroupLog,
    state: Arc<ReplicaState>,
    reads: Reads,
    /// Told when a read on another node waits for what is committed to arrive there.
    commit_wanted: Arc<Notify>,
    copies: Arc<Copies>,
    pace: Pace,
    /// When this replica heard of a leader last, or as leader of a quorum.
    heard: Mutex<Instant>,
    quarantined: AtomicBool,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Where a leader is.
pub(super) enum Route {
    Here,
    There(ReplicaId, NodeName),
}

impl Group {
    /// Starts a replica on its log and state. Its group's first members, when `founders` names them, found the group if it is new.
    ///
    /// # Errors
    ///
    /// CORRUPTION or INTERNAL when log and state do not fit.
    pub async fn start(
        id: GroupId,
        replica: ReplicaId,
        log: GroupLog,
        state: Arc<ReplicaState>,
        settings: Settings,
    ) -> Result<Arc<Self>> {
        let pristine = log.is_pristine();
        let silent = Arc::<AtomicBool>::default();
        let commit_wanted = Arc::<Notify>::default();
        let copies = Arc::<Copies>::default();
        let network = Network {
            cluster: settings.cluster,
            group: id,
            replica,
            transport: Arc::clone(&settings.transport),
            append_timeout: settings.election_timeout,
            silent: Arc::clone(&silent),
            commit_wanted: Arc::clone(&commit_wanted),
            copies: Arc::clone(&copies),
            outbox: settings.outbox.clone(),
            fs: Arc::clone(&settings.fs),
        };
        let machine = StateMachine::new(Arc::clone(&state));
        let raft = Raft::new(replica, settings.openraft(pristine)?, network, log.clone(), machine)
            .await
            .map_err(|fatal| Error::new(Reason::Corruption, format!("{id}: {fatal}")))?;
        let group = Arc::new(Self {
            id,
            replica,
            settings,
            raft,
            log,
            state,
            reads: Reads::default(),
            commit_wanted,
            copies,
            pace: Pace::default(),
            heard: Mutex::new(Instant::now()),
            quarantined: AtomicBool::new(!pristine),
            tasks: Mutex::default(),
        });
        let mut tasks = vec![
            tokio::spawn(Arc::clone(&group).serve_reads()),
            tokio::spawn(Arc::clone(&group).beat(silent)),
        ];
        if !pristine {
            tasks.push(tokio::spawn(Arc::clone(&group).end_quarantine()));
        }
        *group.tasks.lock() = tasks;
        Ok(group)
    }

    /// Founds the group with these members, if it is new. The same call on every one of them is harmless.
    ///
    /// # Errors
    ///
    /// INTERNAL when openraft has stopped.
    pub async fn found(&self, members: BTreeMap<ReplicaId, NodeName>) -> Result<()> {
        use openraft::errors::InitializeError;
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(Error::new(Reason::Internal, format!("{}: {error}", self.id))),
        }
    }

    /// Whether nobody has founded the group yet, as far as this replica knows.
    pub fn is_new(&self) -> bool {
        self.raft.metrics().borrow_watched().membership_config.log_id().is_none()
    }

    /// Which group.
    pub const fn id(&self) -> GroupId {
        self.id
    }

    /// What is applied here.
    pub const fn state(&self) -> &Arc<ReplicaState> {
        &self.state
    }

    /// Whether this node leads the group, as far as it knows.
    pub fn is_leader(&self) -> bool {
        matches!(self.route(), Some(Route::Here))
    }

    /// Whether this replica may answer a read that has to be fresh, or one that may be `stale`. One that is not a voter may be on its way into its group and lack
    /// everything.
    pub(super) fn may_read(&self, stale: bool) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let belongs = metrics.state != ServerState::Learner && metrics.running_state.is_ok();
        let leads = || metrics.state == ServerState::Leader;
        belongs && (stale || self.settings.follower_reads || leads())
    }

    fn has_member(&self, replica: ReplicaId) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&replica).is_some()
    }

    /// What time it is in the group: what a leader stamps, and what says how long a key still has to live.
    pub fn now(&self) -> Timestamp {
        if planted::is(Bug::RawClock) {
            return self.settings.clock.now();
        }
        let applied = self.state.with_engine(Reader::clock);
        let leads = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            (metrics.state == ServerState::Leader).then_some(metrics.vote.leader_id.term)
        };
        let leads = leads.map(|term| Leads { term, wall: self.settings.clock.now() });
        self.pace.now(applied, leads)
    }

    /// Whether this replica, as leader, is to move the group's clock: a key may have expired, or will one day, and the clock was not kept for long.
    pub fn clock_is_due(&self) -> bool {
        let now = self.now();
        let due = |engine: &dyn StorageEngine| {
            let kept = now.saturating_since(engine.clock());
            engine.next_expiry().is_some_and(|at| at <= now || kept >= CLOCK_KEPT_EVERY)
        };
        self.is_leader() && self.state.with_engine(due)
    }

    /// Returns once reads of [`Self::state`] see everything that was acknowledged before the call. Shared with all that call at the same time.
    ///
    /// # Errors
    ///
    /// NO_LEADER, NO_QUORUM; NOT_SERVING when this replica cannot know, but another one may.
    pub async fn confirm(&self) -> Result<()> {
        self.check_alive()?;
        let index = self.reads.confirm().await?;
        self.wait_applied(index).await
    }

    /// As [`Self::confirm`], but the leader trusts that nobody else was elected within two thirds of an election timeout after a quorum answered it last,
    /// which holds as long as clocks run at nearly one rate. Other replicas ask as `confirm` does.
    ///
    /// # Errors
    ///
    /// As [`Self::confirm`].
    pub async fn confirm_by_lease(&self) -> Result<()> {
        self.check_alive()?;
        if !self.is_leader() {
            return self.confirm().await;
        }
        let lease = LinearizerOption::new(Some(self.settings.election_timeout * 2 / 3), true);
        match self.raft.get_read_linearizer(lease).await {
            Ok(linearizer) => self.wait_applied(Some(*linearizer.read_log_id().log_id())).await,
            // No longer the leader: the long way tells.
            Err(_) => self.confirm().await,
        }
    }

    /// Whether a stale read may be answered here.
    ///
    /// # Errors
    ///
    /// NO_LEADER when this replica has heard of no leader for longer than allowed.
    pub fn check_stale(&self) -> Result<()> {
        let Some(most) = self.settings.stale_max else { return Ok(()) };
        let silence = self.heard.lock().elapsed();
        if silence <= most {
            return Ok(());
        }
        let message = format!(
            "{}: this node has heard of no leader for {} s; a stale read may be {} s old at most (kvstore.raft.stale-max)",
            self.id,
            silence.as_secs(),
            most.as_secs()
        );
        Err(Error::new(Reason::NoLeader, message))
    }

    /// What operators see.
    pub fn status(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let index = |log_id: &Option<LogId>| log_id.as_ref().map_or(0, |log_id| log_id.index);
        let last_index = metrics.last_log_index.unwrap_or(0);
        let lag = metrics.replication.iter().flatten().filter(|(id, _)| **id != self.replica);
        let lag = lag.map(|(id, matched)| {
            (*id, matched.as_ref().map(|log_id| last_index.saturating_sub(log_id.index)))
        });
        let leads = metrics.state == ServerState::Leader;
        // A restarted leader shows itself as leader until it hears otherwise.
        let leader = metrics.current_leader.filter(|id| leads || *id != self.replica);
        Status {
            group: self.id,
            leader: leader.and_then(|id| membership.get_node(&id)).cloned(),
            leads,
            term: metrics.current_term,
            replicas: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
            lag: lag.collect(),
            copies: self.copies.copied(),
            last_index,
            applied_index: index(&metrics.last_applied),
            snapshot_index: index(&metrics.snapshot),
            failed: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// Hands leadership to the replica on `node`, and waits until somebody else leads.
    ///
    /// # Errors
    ///
    /// FAILED_PRECONDITION when this node does not lead the group, or that one has no voter of it or lags behind; NO_LEADER when it did not take over in time.
    pub async fn hand_over_to(&self, node: &NodeName) -> Result<()> {
        let status = self.status();
        let precondition = |why: String| Err(Error::new(Reason::FailedPrecondition, why));
        if !status.leads {
            return precondition(format!("{}: this node does not lead it", self.id));
        }
        // One that only follows is never elected, and openraft's leader does not take its hand back: it would lead no more, and nobody else.
        let voters = self.voters();
        let target = status.replicas.iter().find(|(id, name)| *name == node && voters.contains(id));
        let Some((&target, _)) = target else {
            return precondition(format!("{}: {node} has no replica of it that votes", self.id));
        };
        if target == self.replica {
            return Ok(());
        }
        match status.lag.get(&target) {
            Some(Some(lag)) if *lag <= APPEND_ENTRIES_MAX => {}
            _ => {
                return precondition(format!(
                    "{}: the replica on {node} lags behind or is away",
                    self.id
                ));
            }
        }
        self.raft.trigger().transfer_leader(target).await.map_err(|fatal| self.failed(&fatal))?;
        // Not only until this replica leads no more: its vote may be the one that the next leader needs, so it must not stop before.
        let moved = async {
            while !matches!(self.route(), Some(Route::There(..))) {
                sleep(RETRY_PAUSE).await;
            }
        };
        timeout(self.settings.election_timeout * 2, moved).await.map_err(|_| {
            let message = format!("{}: {node} did not take over in time", self.id);
            Error::new(Reason::NoLeader, message)
        })
    }

    /// Hands leadership to whoever is furthest, if this node leads.
    pub async fn step_down(&self) {
        let status = self.status();
        if !status.leads {
            return;
        }
        let voters = self.voters();
        let others = status.lag.iter().filter(|(id, _)| voters.contains(id));
        let nearest = others.filter_map(|(id, lag)| lag.map(|lag| (lag, *id))).min();
        if let Some((_, nearest)) = nearest
            && let Some(node) = status.replicas.get(&nearest)
            && let Err(error) = self.hand_over_to(node).await
        {
            tracing::warn!(group = %self.id, %error, "leadership was not handed over");
        }
    }

    /// Stops the replica: what waits is refused, openraft's tasks end.
    pub async fn stop(&self) {
        self.reads.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(group = %self.id, %error, "a task of Raft panicked");
        }
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            task.abort();
            // It was aborted, or has ended.
            let _ = task.await;
        }
    }

    /// The replicas that answered this leader's signs of life within `within`, itself among them; none when it does not lead.
    pub fn answering(&self, within: Duration) -> BTreeSet<ReplicaId> {
        if !self.is_leader() {
            return BTreeSet::new();
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.iter().flatten().filter_map(|(replica, at)| {
            at.as_ref().is_some_and(|at| at.elapsed() <= within).then_some(*replica)
        });
        heard.chain([self.replica]).collect()
    }

    /// openraft's own view, for simulations.
    #[cfg(test)]
    pub(super) fn metrics(&self) -> openraft::RaftMetrics<TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }

    async fn serve_reads(self: Arc<Self>) {
        while let Some(round) = self.reads.next().await {
            let answer = self.read_round().await;
            round.answer(&answer);
            if planted::is(Bug::LateRead) {
                self.reads.answer_all(&answer);
            }
        }
    }

    /// One round: what reads that wait now have to see.
    async fn read_round(&self) -> Result<ReadIndex> {
        let deadline = Instant::now() + self.settings.patience();
        loop {
            let error = match self.route() {
                Some(Route::Here) if planted::is(Bug::UnconfirmedRead) => {
                    return Ok(self.state.applied());
                }
                Some(Route::Here) => {
                    match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
                        Ok(linearizer) => return Ok(Some(*linearizer.read_log_id().log_id())),
                        Err(RaftError::Fatal(fatal)) => return Err(self.failed(&fatal)),
                        Err(RaftError::APIError(_)) => self.no_quorum(),
                    }
                }
                Some(Route::There(replica, node)) => {
                    let message = Request::ReadIndex.encode(&self.envelope(replica));
                    let timeout = self.settings.election_timeout;
                    let transport = &self.settings.transport;
                    let reply = transport.call(&node, Lane::Control, message, timeout).await;
                    match reply.map(|bytes| Reply::decode(&bytes)) {
                        Ok(Some(Reply::ReadIndex(index))) => return Ok(index),
                        Ok(Some(Reply::Refused(Refusal::NoQuorum(why)))) => {
                            Error::new(Reason::NoQuorum, why)
                        }
                        // Whichever of the two has gone, another node knows better.
                        Ok(Some(Reply::Refused(Refusal::NotHere(why)))) => {
                            return Err(Error::new(Reason::NotServing, why));
                        }
                        _ => self.no_leader(),
                    }
                }
                None => self.no_leader(),
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn wait_applied(&self, index: ReadIndex) -> Result<()> {
        if index <= self.state.applied() {
            return Ok(());
        }
        let mut progress = self.raft.watch_apply_progress();
        let applied = progress.wait_until_ge(&index);
        let applied = if self.is_leader() {
            applied.await
        } else {
            // Nobody tells a replica that it was removed: what it waits for may never come.
            timeout(self.settings.election_timeout, applied).await.map_err(|_| self.behind())?
        };
        applied.map(drop).map_err(|_| self.failed(&"it stopped"))
    }

    /// Returns when more than `seen` is applied, or `at_most` so long has passed.
    pub(super) async fn applied_beyond(&self, seen: Option<LogId>, at_most: Duration) {
        let mut progress = self.raft.watch_apply_progress();
        let beyond = timeout(at_most, progress.wait_until(|applied| *applied > seen)).await;
        if matches!(beyond, Ok(Err(_))) {
            // openraft's task has ended: nothing more will be.
            sleep(at_most).await;
        }
    }

    /// Has a leader give signs of life, and fall silent when a quorum has not answered for the length of its lease. It may be that it is heard and hears
    /// nobody; then what it says keeps the others from electing one who can lead. openraft holds back signs of life, but not entries, which are sent again
    /// and again.
    ///
    /// openraft could time the signs of life as well; but here all groups of a node give them at the same moment, so that those for one node are one
    /// message, and both nodes wake once for all.
    async fn beat(self: Arc<Self>, silent: Arc<AtomicBool>) {
        let mut leads_since = None;
        loop {
            next_beat(self.settings.heartbeat_interval).await;
            // So that this replica has seen the group's clock lately when it is elected.
            self.now();
            let unanswered = {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow_watched();
                let alone = metrics.membership_config.voter_ids().count() <= 1;
                if metrics.state == ServerState::Leader && alone {
                    Some(Duration::ZERO)
                } else if metrics.state == ServerState::Leader {
                    let since = *leads_since.get_or_insert_with(Instant::now);
                    let acked = metrics.last_quorum_acked.as_ref().map(|acked| acked.elapsed());
                    Some(acked.unwrap_or_else(|| since.elapsed()))
                } else {
                    leads_since = None;
                    None
                }
            };
            if let Some(heard) = unanswered.and_then(|ago| Instant::now().checked_sub(ago)) {
                // To a leader, what others hear of it is what it hears of a quorum.
                *self.heard.lock() = heard;
            }
            let beyond = unanswered.and_then(|ago| ago.checked_sub(self.settings.election_timeout));
            let is_silent = beyond.is_some_and(|beyond| {
                let turn = beyond.as_millis() / self.settings.silence().as_millis().max(1);
                turn.is_multiple_of(2)
            });
            silent.store(is_silent, Ordering::Release);
            if unanswered.is_some() && self.raft.trigger().heartbeat().await.is_err() {
                // openraft's task has ended.
                return;
            }
        }
    }

    async fn end_quarantine(self: Arc<Self>) {
        sleep(self.settings.quarantine()).await;
        self.quarantined.store(false, Ordering::Release);
        self.raft.runtime_config().elect(true);
    }

    /// Where the leader is, as far as this replica knows.
    pub(super) fn route(&self) -> Option<Route> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        if leader == self.replica {
            // A restarted leader shows itself as leader until it hears otherwise.
            return (metrics.state == ServerState::Leader).then_some(Route::Here);
        }
        let node = metrics.membership_config.membership().get_node(&leader)?.clone();
        Some(Route::There(leader, node))
    }

    /// Whether the group does its work on this node.
    pub(super) fn check_alive(&self) -> Result<()> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        match &metrics.running_state {
            Ok(()) => Ok(()),
            Err(fatal) => Err(self.failed(fatal)),
        }
    }

    fn envelope(&self, to: ReplicaId) -> Envelope {
        Envelope { cluster: self.settings.cluster, group: self.id, from: self.replica, to }
    }

    fn no_leader(&self) -> Error {
        Error::new(Reason::NoLeader, format!("{} has no leader now", self.id))
    }

    pub(super) fn no_quorum(&self) -> Error {
        Error::new(Reason::NoQuorum, format!("{}: its leader has no quorum behind it now", self.id))
    }

    fn behind(&self) -> Error {
        let message = format!("{}: the replica on this node is behind the others", self.id);
        Error::new(Reason::NotServing, message)
    }

    fn failed(&self, why: &dyn fmt::Display) -> Error {
        let message = format!("{} has failed on this node: {why}; ask another one", self.id);
        Error::new(Reason::NotServing, message)
    }

    fn refuse_failed(&self, why: &dyn fmt::Display) -> Reply {
        Reply::Refused(Refusal::Failed(self.failed(why).message().to_owned()))
    }

    pub(super) fn refuse_not_leader(&self) -> Reply {
        let leader = match self.route() {
            Some(Route::There(_, node)) => Some(node),
            _ => None,
        };
        Reply::Refused(Refusal::NotLeader(leader))
    }
}
