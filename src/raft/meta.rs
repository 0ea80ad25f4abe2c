//! The meta group as this node has it: a copy of what the cluster has agreed on, and the way to change it.
//!
//! The state (`cluster/state.rs`) is one document under [`STATE_KEY`] in a group like any other: its log, its snapshots, its reads and its writes are those of shards. Every
//! node has a replica of it, some of them vote. So there is nothing here but a read, a compare-and-set, and who is told.
//!
//! # Promises
//!
//! * [`Meta::state`] is a state that the cluster has agreed on, never an older one than it was before in the life of this process.
//! * [`Meta::confirmed`] is not older than the call.
//! * [`Meta::change`] changes what it was shown or nothing: when another one came first, the change is tried on that.
//!
//! Called by `node.rs`, `controller`, and who answers for the cluster.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::group::Group;
use super::place::Place;
use super::types::random_id;
use crate::cluster::{ClusterState, Refused};
use crate::command::{Change, Command, Outcome};
use crate::error::{Error, Reason, Result};
use crate::machine::record;
use crate::types::{Key, RequestId, Value, Version};

/// Where the state is.
const STATE_KEY: &str = "cluster";

/// How long a change may take, as a multiple of the election timeout.
pub(super) const PATIENCE_TIMEOUTS: u32 = 8;

/// A state with the version of its document.
#[derive(Debug, Clone)]
struct Known {
    state: Arc<ClusterState>,
    version: Version,
}

/// See the [module](self).
pub struct Meta {
    place: Arc<Place>,
    known: watch::Sender<Option<Known>>,
    patience: Duration,
}

impl Meta {
    /// The meta group that is in `place`.
    pub(super) fn new(place: Arc<Place>, patience: Duration) -> Self {
        Self { place, known: watch::Sender::new(None), patience }
    }

    /// Where the group is.
    pub const fn place(&self) -> &Arc<Place> {
        &self.place
    }

    fn group(&self) -> Result<Arc<Group>> {
        self.place.seated().ok_or_else(|| {
            let message = "this node has not met its cluster yet; nothing was changed";
            Error::new(Reason::NotServing, message)
        })
    }

    /// What the cluster has agreed on, as far as this node has heard; `None` while it has heard nothing.
    pub fn state(&self) -> Option<Arc<ClusterState>> {
        self.known.borrow().as_ref().map(|known| Arc::clone(&known.state))
    }

    /// Whether this node leads the meta group.
    pub fn is_led_here(&self) -> bool {
        self.group().is_ok_and(|group| group.is_leader())
    }

    /// The version of [`Self::state`]: grows with every change.
    pub fn version(&self) -> u64 {
        self.known.borrow().as_ref().map_or(0, |known| known.version.0)
    }

    /// Returns when another state than that of `version` is known.
    pub async fn changed(&self, version: u64) {
        let mut known = self.known.subscribe();
        let is_other =
            |known: &Option<Known>| known.as_ref().is_some_and(|known| known.version.0 != version);
        // The sender is in `self`.
        let _ = known.wait_for(is_other).await;
    }

    /// What the cluster has agreed on at some moment after the call.
    ///
    /// # Errors
    ///
    /// NO_LEADER, NO_QUORUM and NOT_SERVING of the meta group; NOT_SERVING while the cluster is being founded.
    pub async fn confirmed(&self) -> Result<Arc<ClusterState>> {
        self.confirm().await.map(|known| known.state)
    }

    async fn confirm(&self) -> Result<Known> {
        let group = self.group()?;
        group.confirm().await?;
        self.look()?.ok_or_else(|| {
            let message = "the cluster is being founded; ask again in a moment";
            Error::new(Reason::NotServing, message)
        })
    }

    /// Applies `transition` to the state, and has the cluster agree on what comes of it.
    ///
    /// # Errors
    ///
    /// FAILED_PRECONDITION with what `transition` refuses. Those of [`Self::confirmed`]: certainly not changed. OUTCOME_UNKNOWN.
    pub async fn change<T>(
        &self,
        mut transition: impl FnMut(&mut ClusterState) -> std::result::Result<T, Refused>,
    ) -> Result<T> {
        let deadline = Instant::now() + self.patience;
        loop {
            let before = timeout_at(deadline, self.confirm()).await.map_err(|_| late())??;
            let mut state = (*before.state).clone();
            let value = transition(&mut state)
                .map_err(|Refused(why)| Error::new(Reason::FailedPrecondition, why))?;
            if state == *before.state || self.store(&state, before.version, deadline).await? {
                return Ok(value);
            }
        }
    }

    /// Has the cluster begin with `state`, unless it has one.
    ///
    /// # Errors
    ///
    /// As [`Self::change`].
    pub(super) async fn begin(&self, state: &ClusterState) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        self.store(state, Version::ABSENT, deadline).await.map(drop)
    }

    /// Reads the copy here and tells who waits for it.
    ///
    /// # Errors
    ///
    /// NOT_SERVING; CORRUPTION when it is none.
    fn look(&self) -> Result<Option<Known>> {
        let group = self.group()?;
        let version = self.version();
        let key = record::document_key(STATE_KEY.as_bytes());
        let found = group.state().with_engine(|engine| {
            let mut found = Ok(None);
            engine.get_with(&key, &mut |entry| found = decode(entry.value, version))?;
            found
        })?;
        if let Some(newer) = found {
            self.known.send_if_modified(|known| {
                let is_newer = known.as_ref().is_none_or(|known| known.version < newer.version);
                if is_newer {
                    *known = Some(newer);
                }
                is_newer
            });
        }
        Ok(self.known.borrow().clone())
    }

    /// Replaces the state of `version`; false when there is another one.
    async fn store(
        &self,
        state: &ClusterState,
        version: Version,
        deadline: Instant,
    ) -> Result<bool> {
        let key = Key::new(STATE_KEY.to_owned()).expect("it is a key");
        let value = Value::Json(Bytes::from(state.to_json()));
        let change = Change::Put { key, value, ttl: None, if_version: Some(version) };
        let request_id = RequestId::new(&random_id());
        let mut ticket = self.place.propose(Command { change, request_id })?;
        match timeout_at(deadline, &mut ticket).await {
            Ok(outcome) => Ok(matches!(outcome?, Outcome::Put { .. })),
            Err(_) => Err(ticket.give_up()),
        }
    }

    /// Tells who waits, whenever the copy here has changed, for as long as the node runs.
    pub(super) async fn follow(self: Arc<Self>, pause: Duration) {
        loop {
            if let Some(group) = self.place.seated() {
                // It begins with what there is.
                let mut seen = None;
                while self.place.seated().is_some_and(|now| Arc::ptr_eq(&now, &group)) {
                    let applied = group.state().applied();
                    if applied != seen {
                        seen = applied;
                        if let Err(error) = self.look() {
                            tracing::error!(%error, "what the cluster has agreed on cannot be read");
                        }
                    }
                    group.applied_beyond(applied, pause).await;
                }
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn late() -> Error {
    let message = "the cluster's meta group did not answer in time; nothing was changed";
    Error::new(Reason::NoQuorum, message)
}

/// The state in a row, if its version is above `known`.
fn decode(row: &[u8], known: u64) -> Result<Option<Known>> {
    let corrupt = |what: String| {
        Error::new(Reason::Corruption, format!("the document of the meta group: {what}"))
    };
    let stored = record::Stored::decode(row).ok_or_else(|| corrupt("no document".to_owned()))?;
    if stored.version.0 <= known {
        return Ok(None);
    }
    let state = ClusterState::from_json(stored.value().bytes()).map_err(corrupt)?;
    Ok(Some(Known { state: Arc::new(state), version: stored.version }))
}
