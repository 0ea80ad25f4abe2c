//! One request to one node, as the layer above would make it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::cluster::{Cluster, Incarnation};
use super::network::NodeIndex;
use crate::command::{Change, Command, Outcome, TtlSeconds};
use crate::error::{Error, Reason, Result};
use crate::machine::record::{Stored, document_key};
use crate::raft::types::GroupId;
use crate::storage::StorageEngine;
use crate::types::{Key, RequestId, Value, Version};

/// Longest filling of a value, in bytes.
pub(super) const FILLING_BYTES_MAX: usize = 300;

/// A number as a value, with so many bytes that say nothing.
pub(super) fn value(number: u64, filling: usize) -> Value {
    Value::Raw(format!("{number}.{}", "x".repeat(filling)).into())
}

pub(super) fn key(name: &str) -> Key {
    Key::new(name.to_owned()).expect("it is short")
}

pub(super) fn put(name: &str, number: u64, filling: usize, if_version: Option<Version>) -> Change {
    Change::Put { key: key(name), value: value(number, filling), ttl: None, if_version }
}

/// As [`put`], to live for so long.
pub(super) fn put_for(name: &str, number: u64, seconds: u32) -> Change {
    let ttl = TtlSeconds::new(seconds);
    Change::Put { key: key(name), value: value(number, 0), ttl, if_version: None }
}

/// Does what the server does a few times in a second: has the leader move the group's clock when a key may have expired.
pub(super) async fn tick(cluster: &Cluster, group: GroupId) {
    let Some((node, running)) =
        cluster.leader(group).and_then(|node| Some((node, cluster.running(node)?)))
    else {
        return;
    };
    if running.group(group).is_some_and(|group| group.clock_is_due()) {
        // Without a quorum it is tried again.
        let _ = cluster.propose(node, group, Change::Tick, None, Duration::from_secs(1)).await;
    }
}

/// The number of a value and its version, if the key is there.
pub(super) fn read(engine: &dyn StorageEngine, name: &str) -> Result<Option<(u64, Version)>> {
    let mut found = Ok(None);
    engine.get_with(&document_key(name.as_bytes()), &mut |entry| {
        found = number_of(entry.value).map(Some);
    })?;
    found
}

/// The number and version in a document's row.
pub(super) fn number_of(row: &[u8]) -> Result<(u64, Version)> {
    let stored = Stored::decode(row);
    let number = stored.as_ref().and_then(|stored| {
        let value = stored.value();
        let text = std::str::from_utf8(value.bytes()).ok()?;
        text.split('.').next()?.parse().ok()
    });
    let malformed = || Error::new(Reason::Corruption, "a document that nobody stored");
    Ok((number.ok_or_else(malformed)?, stored.ok_or_else(malformed)?.version))
}

fn down() -> Error {
    Error::new(Reason::NotServing, "the node is down")
}

impl Cluster {
    /// The replica of `group` on the node is not there any more, for all that ask for it.
    pub(crate) fn unseat(&self, node: NodeIndex, group: GroupId) {
        self.running(node).expect("up").place(group).seat(None);
    }

    /// The replica comes back, as another would.
    pub(crate) fn seat(&self, node: NodeIndex, group: GroupId) {
        let running = self.running(node).expect("up");
        running.place(group).seat(Some(running.replica(group)));
    }

    fn reach(&self, node: NodeIndex) -> Result<Incarnation> {
        self.running(node).ok_or_else(down)
    }

    /// Proposes at `node` and waits.
    pub(super) async fn propose(
        &self,
        node: NodeIndex,
        group: GroupId,
        change: Change,
        request_id: Option<&str>,
        limit: Duration,
    ) -> Result<Outcome> {
        let deadline = Instant::now() + limit;
        let running = self.reach(node)?;
        let request_id = request_id.and_then(RequestId::new);
        let mut ticket = running.place(group).propose(Command { change, request_id })?;
        tokio::select! {
            biased;
            () = running.crashed.cancelled() => {
                Err(Error::new(Reason::OutcomeUnknown, "the node crashed"))
            }
            outcome = &mut ticket => outcome,
            () = tokio::time::sleep_until(deadline) => Err(ticket.give_up()),
        }
    }

    /// Reads at `node`, linearizably.
    pub(super) async fn get<T>(
        &self,
        node: NodeIndex,
        group: GroupId,
        limit: Duration,
        read: impl FnOnce(&dyn StorageEngine) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let running = self.reach(node)?;
        let replica = running.group(group).ok_or_else(down)?;
        let late = || Error::new(Reason::DeadlineExceeded, "the read did not end in time");
        tokio::select! {
            biased;
            () = running.crashed.cancelled() => {
                return Err(Error::new(Reason::NotServing, "the node crashed"));
            }
            confirmed = timeout_at(deadline, replica.confirm()) => {
                confirmed.unwrap_or_else(|_| Err(late()))?;
            }
        }
        let found = replica.state().with_engine(read);
        // A disk that is gone takes a read with it, until the rest of the node notices.
        found.map_err(|error| if running.fs.crashed() { down() } else { error })
    }

    /// Proposes somewhere, again and again with one request id, until it is answered.
    pub(super) async fn settle(
        &self,
        group: GroupId,
        change: &Change,
        request_id: &str,
        limit: Duration,
    ) -> Result<Outcome> {
        let deadline = Instant::now() + limit;
        let mut node = 0;
        loop {
            node = (node + 1) % self.shape.nodes();
            let limit = Duration::from_secs(1);
            match self.propose(node, group, change.clone(), Some(request_id), limit).await {
                Err(error) if Instant::now() < deadline => {
                    drop(error);
                    sleep(Duration::from_millis(20)).await;
                }
                other => return other,
            }
        }
    }
}
