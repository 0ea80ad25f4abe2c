//! What must hold at every moment, whatever goes wrong. Looked at after every few milliseconds of virtual time.
//!
//! * Entries that two replicas hold for committed at one index are the same.
//! * What a replica knows to be committed does not go back as long as it lives; what it has applied is committed.
//! * What is flushed is applied, and the log is purged no further than what is flushed.
//! * Replicas that have applied up to the same entry have the same state, bookkeeping included.
//! * What can be read was proposed.
//! * A replica ends by itself only when its disk has failed.
//! * A replica's number is on one node, and where it was erased it never runs again.
//!
//! A term may have several leaders: openraft compares votes by term and then by replica, and a candidate can win over one who leads already and whose entries are
//! not committed. So it is what is committed that has to be unique.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::access;
use super::cluster::{Cluster, Incarnation};
use super::network::NodeIndex;
use super::record::Record;
use crate::machine::record::{DOCUMENT, DOCUMENTS_END};
use crate::raft::state::state_hash;
use crate::raft::types::{GroupId, LogId, ReplicaId};
use crate::storage::{Direction, KeyRange, StorageEngine};

/// See the [module](self).
pub(super) struct Invariants {
    cluster: Arc<Cluster>,
    record: Arc<Record>,
    /// Who has led a term of a group.
    leaders: BTreeSet<(GroupId, u64, ReplicaId)>,
    /// Which entry is committed at an index.
    committed: BTreeMap<(GroupId, u64), LogId>,
    /// How far replicas were, by life.
    progress: BTreeMap<(NodeIndex, u64, GroupId, ReplicaId), Option<LogId>>,
    /// Which replicas were seen, on which node, and those that are not there any more.
    seats: BTreeMap<(GroupId, ReplicaId), NodeIndex>,
    erased: BTreeSet<(GroupId, ReplicaId)>,
    /// The state after an entry.
    hashes: BTreeMap<(GroupId, LogId), u64>,
}

impl Invariants {
    pub(super) fn new(cluster: &Arc<Cluster>, record: &Arc<Record>) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            record: Arc::clone(record),
            leaders: BTreeSet::new(),
            committed: BTreeMap::new(),
            progress: BTreeMap::new(),
            seats: BTreeMap::new(),
            erased: BTreeSet::new(),
            hashes: BTreeMap::new(),
        }
    }

    /// How often a group got a leader.
    pub(super) fn leaders(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// How many replicas were erased.
    pub(super) fn erased(&self) -> u64 {
        self.erased.len() as u64
    }

    /// Looks at what is cheap.
    pub(super) fn look(&mut self) {
        for (node, running) in self.cluster.all_running() {
            self.look_at_seats(node, &running);
            for group in self.cluster.groups() {
                if let Err(what) = self.look_at(node, &running, group) {
                    self.record.violate(format!("node {node}, {group}: {what}"));
                }
            }
        }
    }

    fn look_at_seats(&mut self, node: NodeIndex, running: &Incarnation) {
        let here: BTreeSet<_> = self
            .cluster
            .groups()
            .chain([GroupId::META])
            .filter_map(|group| Some((group, running.group(group)?.replica())))
            .collect();
        for seat in &here {
            let first = *self.seats.entry(*seat).or_insert(node);
            if first != node || self.erased.contains(seat) {
                let what =
                    format!("replica {} of {} is on node {node} again, or on two", seat.1, seat.0);
                self.record.violate(what);
            }
        }
        // What is here is opened before a node counts as running.
        let gone = self.seats.iter().filter(|(seat, on)| **on == node && !here.contains(seat));
        self.erased.extend(gone.map(|(seat, _)| *seat));
    }

    fn look_at(
        &mut self,
        node: NodeIndex,
        running: &Incarnation,
        group: GroupId,
    ) -> Result<(), String> {
        let Some(replica) = running.group(group) else { return Ok(()) };
        let metrics = replica.metrics();
        let fs = self.cluster.fs(node);
        if let Err(fatal) = &metrics.running_state
            && fs.faults_struck() == 0
            && !fs.crashed()
        {
            return Err(format!("it ended by itself: {fatal}"));
        }
        if metrics.vote.committed {
            let leader = metrics.vote.leader_id;
            let seen = (group, leader.term, leader.node_id);
            if self.leaders.insert(seen) {
                self.record.trace(seen);
            }
        }
        let state = replica.state();
        let (applied, flushed) = (state.applied(), state.flushed());
        for log_id in [metrics.local_committed, applied, flushed].into_iter().flatten() {
            let known = *self.committed.entry((group, log_id.index)).or_insert(log_id);
            if known != log_id {
                return Err(format!("{known} and {log_id} are committed"));
            }
        }
        let before =
            self.progress.entry((node, running.number, group, replica.replica())).or_default();
        if metrics.local_committed < *before {
            let now = metrics.local_committed;
            return Err(format!("{before:?} was committed, and now {now:?} is"));
        }
        *before = metrics.local_committed;
        if flushed > applied {
            return Err(format!("{flushed:?} is flushed and {applied:?} applied"));
        }
        let purged = running.log.group(group).purged();
        if purged > flushed {
            return Err(format!("the log is purged to {purged:?} and {flushed:?} flushed"));
        }
        Ok(())
    }

    /// Looks at all that can be read.
    pub(super) fn look_at_states(&mut self) {
        for (node, running) in self.cluster.all_running() {
            for group in self.cluster.groups() {
                let Some(replica) = running.group(group) else { continue };
                let state = replica.state();
                let Some(applied) = state.applied() else { continue };
                let found = state.with_engine(|engine| self.check_documents(engine));
                let hash = found.and_then(|()| {
                    state.with_engine(state_hash).map_err(|error| error.to_string())
                });
                match hash {
                    Ok(hash) => {
                        self.record.trace((node, group, applied.index, hash));
                        let known = *self.hashes.entry((group, applied)).or_insert(hash);
                        if known != hash {
                            let what = format!(
                                "node {node}, {group}: its state at {applied} is not that of others"
                            );
                            self.record.violate(what);
                        }
                    }
                    Err(_) if self.cluster.fs(node).crashed() => {}
                    Err(what) => self.record.violate(format!("node {node}, {group}: {what}")),
                }
            }
        }
    }

    fn check_documents(&self, engine: &dyn StorageEngine) -> Result<(), String> {
        let text = |error: crate::storage::Error| error.to_string();
        let range = KeyRange::new(&[DOCUMENT], Some(&DOCUMENTS_END));
        let mut rows = engine.scan(range, Direction::Forward).map_err(text)?;
        while let Some(row) = rows.next().map_err(text)? {
            let key = String::from_utf8_lossy(&row.key[1..]).into_owned();
            let (number, _) = access::number_of(row.value).map_err(|error| error.to_string())?;
            if !key.starts_with("batch-") && !self.record.was_proposed(&key, number) {
                return Err(format!("{key} holds {number}, which nobody proposed"));
            }
        }
        Ok(())
    }

    /// Whether all replicas have applied the same, and how far they are if not.
    pub(super) fn settled(&self) -> Result<(), String> {
        for group in self.cluster.groups() {
            let running = self.cluster.all_running();
            let replicas: Vec<_> =
                running.iter().filter_map(|(_, node)| node.group(group)).collect();
            let applied: Vec<_> =
                replicas.iter().map(|replica| replica.state().applied()).collect();
            let last = replicas.iter().map(|replica| replica.metrics().last_log_index);
            let last = last.max().flatten();
            let same = applied.iter().all(|log_id| log_id.map(|log_id| log_id.index) == last);
            if running.len() < self.cluster.present().len() || !same {
                return Err(format!("{group} goes to {last:?}, applied are {applied:?}"));
            }
        }
        Ok(())
    }
}
