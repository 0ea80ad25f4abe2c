//! A state machine that remembers nothing but how far it has come: what openraft's conformance suite needs beside a log.

use std::io;

use futures::{Stream, TryStreamExt as _};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};

use crate::raft::types::{LeaderId, LogId, NodeName, Outcomes, ReplicaId, SnapshotMeta};
use crate::raft::types::{StoredMembership, TypeConfig};

#[derive(Debug, Clone, Default)]
pub(super) struct Machine {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: std::sync::Arc<std::sync::Mutex<Option<SnapshotMeta>>>,
}

impl Machine {
    fn meta(&self) -> Option<SnapshotMeta> {
        self.snapshot.lock().expect("not poisoned").clone()
    }
}

type Taken = Snapshot<LeaderId, ReplicaId, NodeName, ()>;

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<Taken> {
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        *self.snapshot.lock().expect("not poisoned") = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(Outcomes::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, (): ()) -> io::Result<()> {
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        *self.snapshot.lock().expect("not poisoned") = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Taken>> {
        Ok(self.meta().map(|meta| Snapshot { meta, snapshot: () }))
    }
}
