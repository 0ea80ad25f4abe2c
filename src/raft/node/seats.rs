//! Replicas that come to this node and go: made when the cluster's state names them, erased when it does not any more; groups that nobody has founded yet are founded.
//!
//! One task does all of it, so that a group is in one hand. Each step can be cut off by a crash and is done again, or on, at the next start:
//!
//! * **Come**: the table holds the number; the log and the engine begin empty; the replica runs and is seated. The leader sends what it needs.
//! * **Go**: a quorum confirms that nobody names it; the table says that it is erased; it is unseated and stopped; its log is forgotten; its engines are removed, as soon
//!   as nobody reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Node;
use crate::cluster::{ClusterState, Replicas};
use crate::error::{Error, Reason, Result};
use crate::raft::blocking::blocking;
use crate::raft::group::Group;
use crate::raft::planted::{self, Bug};
use crate::raft::state::ReplicaState;
use crate::raft::types::{GroupId, ReplicaId};
use crate::types::ShardId;

/// How often the seats are looked at when nothing has changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The same while a group waits to be founded or a removed one for its readers.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);

/// What a founder begins its cluster with.
pub(super) struct Founding {
    pub(super) voters: Replicas,
    pub(super) state: Box<ClusterState>,
}

/// What the task remembers from one look to the next.
#[derive(Default)]
struct Work {
    /// Groups that nobody has founded yet, since when.
    new_since: BTreeMap<GroupId, Instant>,
    /// Groups that are erased, of which something may be left.
    leftovers: BTreeSet<GroupId>,
    /// What went wrong last, so that it is said once.
    failed: String,
}

impl Node {
    /// Opens what the table says is here, and removes what a crash left of what was erased.
    pub(super) async fn open_held(&self, meta: Option<ReplicaId>) -> Result<()> {
        let is_empty = self.table.lock().held().is_empty();
        if is_empty && !(self.log.groups().is_empty() && self.environment.list()?.is_empty()) {
            // Written down before anything is made: what is here is not of this program, and nothing that could be removed.
            let message = "the data directory holds replicas, and no replicas.json says whose they are: it was written by an earlier version, or the file is lost; restore it from a backup, or empty the directory and join under a new name";
            return Err(Error::new(Reason::Corruption, message));
        }
        let held = {
            let mut table = self.table.lock();
            if let (None, Some(meta)) = (table.replica(GroupId::META), meta) {
                blocking(|| table.hold(GroupId::META, meta)).map_err(disk)?;
            }
            table.held()
        };
        for group in self.log.groups() {
            if !held.contains_key(&group) {
                self.log.forget(group).await.map_err(disk)?;
            }
        }
        blocking(|| ReplicaState::remove_others(&*self.environment, &held))?;
        for (group, replica) in held {
            self.open(group, replica).await?;
        }
        Ok(())
    }

    /// Runs a replica and seats it.
    async fn open(&self, id: GroupId, replica: ReplicaId) -> Result<()> {
        let log = self.log.group(id);
        let environment = Arc::clone(&self.environment);
        let state = blocking(|| ReplicaState::open(environment, id, Arc::new(log.clone())))?;
        let group = Group::start(id, replica, log, state, self.settings.clone()).await?;
        if let Some(place) = self.place(id) {
            place.seat(Some(Arc::clone(&group)));
        }
        let mut groups = (**self.groups.load()).clone();
        groups.insert(id, group);
        self.groups.store(Arc::new(groups));
        Ok(())
    }

    /// Keeps what is here as the cluster has agreed on, until the node stops.
    pub(super) async fn keep_seats(self: Arc<Self>) {
        let mut work = Work::default();
        loop {
            let version = self.meta.version();
            let outcome = self.arrange(&mut work).await;
            let failed = outcome.err().map(|error| error.to_string()).unwrap_or_default();
            if failed != work.failed && !failed.is_empty() {
                tracing::warn!("replicas cannot come or go: {failed}; trying again");
            }
            work.failed = failed;
            let busy = !work.new_since.is_empty() || !work.leftovers.is_empty();
            let pause = if busy { BUSY_INTERVAL } else { LOOK_INTERVAL };
            let changed = timeout(pause, self.meta.changed(version));
            // Not in the middle of a step.
            if self.stopping.run_until_cancelled(changed).await.is_none() {
                return;
            }
        }
    }

    async fn arrange(&self, work: &mut Work) -> Result<()> {
        self.found_meta(work).await?;
        self.remove_leftovers(work);
        let Some(state) = self.meta.state() else { return Ok(()) };
        let own = &self.settings.node;
        let mut unwanted = Vec::new();
        for (place, (shard, group)) in self.places.iter().zip(state.numbered()) {
            let id = place.id();
            if *place.replicas() != group.voters {
                place.set_replicas(group.voters.clone());
            }
            let (held, wanted) = (self.table.lock().replica(id), state.replica_on(shard, own));
            match (held, wanted) {
                (Some(held), wanted) if wanted != Some(held) => unwanted.push((id, held)),
                (None, Some(wanted)) if !work.leftovers.contains(&id) => {
                    self.make(id, wanted).await?;
                }
                (Some(held), Some(_)) if self.group(id).is_none() => self.open(id, held).await?,
                _ => {}
            }
            self.found_shard(work, id, &state).await?;
        }
        if !unwanted.is_empty() {
            let blind = planted::is(Bug::BlindErase);
            let confirmed = if blind { state } else { self.meta.confirmed().await? };
            for (id, held) in unwanted {
                if confirmed.replica_on(ShardId(id.0), own) != Some(held) {
                    self.erase(work, id).await?;
                }
            }
        }
        Ok(())
    }

    async fn make(&self, id: GroupId, replica: ReplicaId) -> Result<()> {
        if self.table.lock().was_erased(id, replica) {
            // A state from before: a later one does not name it.
            return Ok(());
        }
        blocking(|| self.table.lock().hold(id, replica)).map_err(disk)?;
        tracing::info!(group = %id, replica, "a replica comes here");
        self.open(id, replica).await
    }

    async fn erase(&self, work: &mut Work, id: GroupId) -> Result<()> {
        blocking(|| self.table.lock().erase(id)).map_err(disk)?;
        tracing::info!(group = %id, "its replica leaves this node");
        if let Some(place) = self.place(id) {
            place.seat(None);
        }
        work.leftovers.insert(id);
        work.new_since.remove(&id);
        let mut groups = (**self.groups.load()).clone();
        let group = groups.remove(&id);
        self.groups.store(Arc::new(groups));
        if let Some(group) = group {
            group.stop().await;
        }
        self.log.forget(id).await.map_err(disk)
    }

    /// Removes the engines of what was erased, as far as nobody reads them.
    fn remove_leftovers(&self, work: &mut Work) {
        if !work.leftovers.is_empty() {
            let removed = |id: &GroupId| ReplicaState::remove(&*self.environment, *id).is_ok();
            blocking(|| work.leftovers.retain(|id| !removed(id)));
        }
    }

    /// Founds the meta group, and has it begin with the cluster's first state.
    async fn found_meta(&self, work: &mut Work) -> Result<()> {
        let (Some(founding), Some(group)) = (&self.founding, self.group(GroupId::META)) else {
            return Ok(());
        };
        if group.is_new() && founding.voters.contains_key(&group.replica()) {
            let first = founding.voters.first_key_value().map(|(replica, _)| *replica);
            if self.is_due(work, GroupId::META, first == Some(group.replica())) {
                group.found(founding.voters.clone()).await?;
            }
        } else {
            work.new_since.remove(&GroupId::META);
        }
        if self.meta.state().is_none() && group.is_leader() {
            self.meta.begin(&founding.state).await?;
        }
        Ok(())
    }

    /// Founds a shard's group of which the cluster has agreed who is in it: its preferred node at once, so that it leads; the others when that did not.
    async fn found_shard(&self, work: &mut Work, id: GroupId, state: &ClusterState) -> Result<()> {
        let Some(group) = self.group(id) else { return Ok(()) };
        let Some(shard) = state.shards.get(id.0 as usize) else { return Ok(()) };
        let is_first = shard.as_of == 0 && shard.voters.contains_key(&group.replica());
        if !(is_first && group.is_new()) {
            work.new_since.remove(&id);
            return Ok(());
        }
        let preferred = state.placement.nodes(ShardId(id.0)).first() == Some(&self.settings.node);
        if self.is_due(work, id, preferred) {
            group.found(shard.voters.clone()).await?;
        }
        Ok(())
    }

    fn is_due(&self, work: &mut Work, id: GroupId, first: bool) -> bool {
        let since = *work.new_since.entry(id).or_insert_with(Instant::now);
        first || since.elapsed() >= self.settings.election_timeout * 2
    }
}

fn disk(error: std::io::Error) -> Error {
    Error::new(Reason::ReadOnly, format!("the disk refuses: {error}"))
}
