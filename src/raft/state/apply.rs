//! The state machine that openraft writes to: committed entries become rows of the engine of now.
//!
//! openraft calls one thing at a time, on a task of its own for each group. Entries are taken in **chunks** and a chunk is applied in four steps:
//!
//! 1. its entries are read, at most [`CHUNK_ENTRIES_MAX`] and [`CHUNK_BYTES_MAX`],
//! 2. the local log has all of them durably,
//! 3. one batch with all they change goes to the engine, together with the applied log id and the membership,
//! 4. those who wait are answered, in order.
//!
//! A crash before a flush loses step 3, and the log has it. An error before step 4 ends the group: nobody is answered, and nothing is skipped.
//! A full disk is no such error, it is waited for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::{Stream, StreamExt as _};
use openraft::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};

use super::super::encoding::entry_bytes;
use super::super::planted::{self, Bug};
use super::super::types::{Entry, LogId, Outcomes, SnapshotMeta, StoredMembership, TypeConfig};
use super::snapshot::{Snapshot, SnapshotBuilder, SnapshotData};
use super::{ReplicaState, rows, to_io};
use crate::error::{Error, Reason, Result};
use crate::machine::Group;
use crate::storage::Durability;

/// Most entries of a chunk.
const CHUNK_ENTRIES_MAX: usize = 256;

/// Most bytes of entries of a chunk; the entry that reaches it is the last, however large it is.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// See the [module](self).
pub struct StateMachine(Arc<ReplicaState>);

impl StateMachine {
    /// The machine of `state`. There is one.
    pub const fn new(state: Arc<ReplicaState>) -> Self {
        Self(state)
    }
}

/// Entries that are applied together, never none, each with who waits for its outcomes.
struct Chunk<W> {
    entries: Vec<Entry>,
    waiting: Vec<W>,
    bytes: usize,
    last: LogId,
}

impl<W> Chunk<W> {
    /// The next entries; `None` when there are no more.
    async fn take<S>(entries: &mut S) -> io::Result<Option<Self>>
    where
        S: Stream<Item = io::Result<(Entry, W)>> + Unpin,
    {
        let Some(first) = entries.next().await else { return Ok(None) };
        let (first, waits) = first?;
        let mut chunk = Self {
            bytes: entry_bytes(&first),
            last: first.log_id,
            entries: vec![first],
            waiting: vec![waits],
        };
        while chunk.entries.len() < CHUNK_ENTRIES_MAX
            && chunk.bytes < CHUNK_BYTES_MAX
            && let Some(next) = entries.next().await
        {
            let (entry, waits) = next?;
            chunk.bytes += entry_bytes(&entry);
            chunk.last = entry.log_id;
            chunk.entries.push(entry);
            chunk.waiting.push(waits);
        }
        Ok(Some(chunk))
    }
}

impl ReplicaState {
    /// Applies all of `entries`; `answer` gets the outcomes of each.
    pub(super) async fn apply<S, W>(
        &self,
        mut entries: S,
        mut answer: impl FnMut(W, Outcomes),
    ) -> io::Result<()>
    where
        S: Stream<Item = io::Result<(Entry, W)>> + Unpin,
    {
        while let Some(Chunk { entries, waiting, bytes, last }) = Chunk::take(&mut entries).await? {
            self.log.durable(last.index).await?;
            let write = || self.write(&entries, bytes, last);
            let outcomes = self.with_room("committed entries", write).await.map_err(to_io)?;
            for (waits, outcomes) in waiting.into_iter().zip(outcomes) {
                answer(waits, outcomes);
            }
            self.remove_retired();
        }
        Ok(())
    }

    /// Step 3.
    fn write(&self, entries: &[Entry], bytes: usize, last: LogId) -> Result<Vec<Outcomes>> {
        let generation = self.current.load_full();
        let last_version = self.last_version();
        let mut group = Group::new(&*generation.engine, last_version);
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut membership = None;
        let mut commands = 0;
        for entry in entries {
            let applied = match &entry.payload {
                EntryPayload::Blank => Outcomes::default(),
                EntryPayload::Normal(proposal) => {
                    let (stamp, mut proposed) =
                        proposal.decode().map_err(|error| self.malformed(entry, error))?;
                    commands += proposed.len() as u64;
                    let stamp = planted::stamp(stamp);
                    if planted::is(Bug::NoDedup) {
                        for command in &mut proposed {
                            command.request_id = None;
                        }
                    }
                    let applied = proposed.iter().map(|command| group.apply(command, stamp));
                    Outcomes(applied.collect::<Result<_>>()?)
                }
                EntryPayload::Membership(members) => {
                    membership = Some(StoredMembership::new(Some(entry.log_id), members.clone()));
                    Outcomes::default()
                }
            };
            outcomes.push(applied);
        }
        let (mut batch, last_version) = group.finish(last_version);
        if let Some(membership) = &membership {
            rows::put_members(&mut batch, membership);
        }
        rows::put_applied(&mut batch, &last);
        generation.engine.write(&batch, Durability::None)?;
        let mut progress = generation.progress.lock();
        progress.applied.last_log_id = Some(last);
        if let Some(membership) = membership {
            progress.applied.last_membership = membership;
        }
        progress.last_version = last_version;
        progress.applied_bytes += bytes as u64;
        drop(progress);
        self.writes.fetch_add(commands, Ordering::Relaxed);
        Ok(outcomes)
    }

    fn malformed(&self, entry: &Entry, error: impl std::fmt::Display) -> Error {
        let message = format!("{}: entry {} is {error}", self.group, entry.log_id);
        Error::new(Reason::Corruption, message)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let SnapshotMeta { last_log_id, last_membership } = self.0.covered();
        Ok((last_log_id, last_membership))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        let answer = |waits: Option<ApplyResponder<TypeConfig>>, outcomes| {
            if let Some(waits) = waits {
                waits.send(outcomes);
            }
        };
        self.0.apply(entries, answer).await
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        (force || self.0.applied().is_some()).then(|| SnapshotBuilder::new(Arc::clone(&self.0)))
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder::new(Arc::clone(&self.0))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: SnapshotData,
    ) -> io::Result<()> {
        self.0.install(meta, data).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.0.snapshot())
    }
}
