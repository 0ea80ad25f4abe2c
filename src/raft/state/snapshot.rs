//! Snapshots. None is a file that lies somewhere: this replica's own is the engine itself, and one that was received becomes an engine.
//!
//! * **Building** one is a flush: its meta is what was applied before and is in the engine's tables after, so that the log may be purged up to there.
//!   Entries are applied meanwhile.
//! * **Sending** one makes a checkpoint of the engine of now. That may hold more than the meta says, which does no harm: all of it is committed.
//! * **Receiving** one: [`ReplicaState::stage`] makes an engine of the checkpoint, and its rows say what it covers. openraft then decides;
//!   what it does not want is removed when it lets it go.
//! * **Installing** one is a switch to that engine (see the [module](super)).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use openraft::storage::RaftSnapshotBuilder;
use openraft::type_config::alias::SnapshotOf;

use super::super::planted::{self, Bug};
use super::super::types::{SnapshotMeta, TypeConfig};
use super::generation::Generation;
use super::{ReplicaState, blocking, engine_name, to_io};
use crate::error::{Error, Reason, Result};

/// A snapshot, as openraft passes it around.
pub(super) type Snapshot = SnapshotOf<TypeConfig, SnapshotData>;

/// What a snapshot consists of.
pub enum SnapshotData {
    /// The state of this replica itself.
    Current(Arc<ReplicaState>),
    /// Another replica's, staged here.
    Received(Received),
}

impl SnapshotData {
    /// Copies the snapshot into `directory`, which must be empty or not exist: what [`ReplicaState::stage`] of another node takes. It may cover more than
    /// the snapshot's meta says. Blocks.
    ///
    /// # Errors
    ///
    /// What the engine fails with.
    pub fn checkpoint(&self, directory: &Path) -> Result<()> {
        match self {
            Self::Current(state) => Ok(state.engine().checkpoint(directory)?),
            Self::Received(received) => Ok(received.generation().engine.checkpoint(directory)?),
        }
    }
}

/// A checkpoint of another replica as an engine of this one. Dropped before it is installed, it is removed.
pub struct Received {
    state: Arc<ReplicaState>,
    /// `None` once it is installed.
    generation: Option<Arc<Generation>>,
}

impl Received {
    fn generation(&self) -> &Generation {
        self.generation.as_ref().expect("it goes only when this goes")
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(generation) = self.generation.take() {
            let name = generation.name.clone();
            drop(generation);
            self.state.retire(name);
        }
    }
}

/// Makes a snapshot of what was applied when it was made. openraft runs it beside the state machine.
pub struct SnapshotBuilder {
    state: Arc<ReplicaState>,
    generation: Arc<Generation>,
    meta: SnapshotMeta,
    applied_bytes: u64,
}

impl SnapshotBuilder {
    /// Called where nothing is applied meanwhile.
    pub(super) fn new(state: Arc<ReplicaState>) -> Self {
        let generation = state.current.load_full();
        let (meta, applied_bytes) = {
            let progress = generation.progress.lock();
            (progress.applied.clone(), progress.applied_bytes)
        };
        Self { state, generation, meta, applied_bytes }
    }

    fn flush(&self) -> Result<SnapshotMeta> {
        let flushed = if planted::is(Bug::EarlyPurge) {
            Ok(())
        } else {
            self.generation.engine.flush().map_err(Error::from)
        };
        let mut progress = self.generation.progress.lock();
        match flushed {
            Ok(()) => {
                progress.note_flushed(self.meta.clone(), self.applied_bytes);
                Ok(self.meta.clone())
            }
            // No reason for the group to end: the snapshot there is stays, and the log with it.
            Err(error) if error.reason() == Reason::DiskFull => {
                tracing::warn!(group = %self.state.group, %error, "no room for a snapshot");
                Ok(progress.flushed.clone())
            }
            Err(error) => Err(error),
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let meta = blocking(|| self.flush()).map_err(to_io)?;
        self.state.remove_retired();
        Ok(Snapshot { meta, snapshot: SnapshotData::Current(Arc::clone(&self.state)) })
    }
}

impl ReplicaState {
    /// Makes an engine of the checkpoint in `directory`, which stays as it is; what it covers, and the snapshot to install. Blocks: it reads all of it.
    ///
    /// # Errors
    ///
    /// What the engine fails with, damage of the checkpoint for one; INVALID_REQUEST when it is none of a replica's state.
    pub fn stage(self: &Arc<Self>, directory: &Path) -> Result<(SnapshotMeta, SnapshotData)> {
        let number = self.next_generation.fetch_add(1, Ordering::Relaxed);
        let name = engine_name(self.group, number);
        self.environment.install(&name, directory)?;
        let generation = Generation::open(&*self.environment, number, name.clone())
            .inspect_err(|_| self.retire(name))?;
        let meta = generation.progress.lock().applied.clone();
        let received = Received { state: Arc::clone(self), generation: Some(Arc::new(generation)) };
        if meta.last_log_id.is_none() {
            let message = format!("{}: what was received covers no entry", self.group);
            return Err(Error::new(Reason::InvalidRequest, message));
        }
        Ok((meta, SnapshotData::Received(received)))
    }

    /// What the state of now covers.
    pub(super) fn covered(&self) -> SnapshotMeta {
        self.current.load().progress.lock().applied.clone()
    }

    /// The state of now as a snapshot, if anything of it is flushed.
    pub(super) fn snapshot(self: &Arc<Self>) -> Option<Snapshot> {
        let meta = self.current.load().progress.lock().flushed.clone();
        meta.last_log_id?;
        Some(Snapshot { meta, snapshot: SnapshotData::Current(Arc::clone(self)) })
    }

    /// Makes the snapshot the state of now.
    pub(super) async fn install(&self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        let mut received = match data {
            SnapshotData::Received(received) => received,
            SnapshotData::Current(_) if meta.last_log_id <= self.applied() => return Ok(()),
            SnapshotData::Current(_) => return Err(self.unfit("newer than the state it is of")),
        };
        if !std::ptr::eq(self, Arc::as_ptr(&received.state)) {
            return Err(self.unfit("another group's"));
        }
        let covers = received.generation().progress.lock().applied.last_log_id;
        if covers != meta.last_log_id {
            return Err(self.unfit("not the one that was staged"));
        }
        // From here on the log alone says which generation lives: after an error nobody knows, and neither may be removed.
        let Some(generation) = received.generation.take() else { return Ok(()) };
        self.log.set_generation(generation.number).await?;
        let old = self.current.swap(generation);
        let name = old.name.clone();
        drop(old);
        self.retire(name);
        Ok(())
    }

    fn unfit(&self, what: &str) -> io::Error {
        let message = format!("{}: the snapshot to install is {what}", self.group);
        to_io(Error::new(Reason::Internal, message))
    }

    /// The engine `name` is needed no more.
    fn retire(&self, name: String) {
        self.retired.lock().push(name);
        self.remove_retired();
    }
}
