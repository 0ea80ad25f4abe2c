//! What all groups of a node have in common, and what follows from it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use uuid::Uuid;

use super::APPEND_ENTRIES_MAX;
use crate::error::{Error, Reason, Result};
use crate::raft::planted::{self, Bug};
use crate::raft::proposals::Budget;
use crate::raft::room::Room;
use crate::raft::transport::Transport;
use crate::raft::types::NodeName;
use crate::util::fs::FileSystem;
use crate::util::time::Clock;

/// How many election timeouts a command or read waits for a leader before its caller is told that there is none.
const PATIENCE_TIMEOUTS: u32 = 4;

/// How long a snapshot may take to send and install.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_mins(10);

/// What all groups of a node have in common.
#[derive(Clone)]
pub struct Settings {
    /// The cluster.
    pub cluster: Uuid,
    /// The name of this node.
    pub node: NodeName,
    /// Longest silence of a leader before an election, and the length of its lease.
    pub election_timeout: Duration,
    /// Between two signs of life of a leader.
    pub heartbeat_interval: Duration,
    /// Entries that stay in the log behind a snapshot, for followers that were away briefly.
    pub log_keep: u64,
    /// Most bytes of a log that goes back to the beginning with which a new replica gets its entries; from a longer one it gets a snapshot's files.
    pub log_sent_bytes: u64,
    /// How long a replica may not have heard of a leader and still answer stale reads; `None`: for ever.
    pub stale_max: Option<Duration>,
    /// Whether a replica that does not lead reads for linearizable reads of its node; otherwise they are sent to the leader.
    pub follower_reads: bool,
    /// Bytes of commands on their way, for all groups.
    pub budget: Budget,
    /// Whether commands that grow may be proposed.
    pub room: Arc<Room>,
    /// Other nodes.
    pub transport: Arc<dyn Transport>,
    /// Begins and pulls the clocks of groups, as leader (`pace.rs`).
    pub clock: Arc<dyn Clock>,
    /// Where checkpoints are made that are sent, and the file system it is on.
    pub outbox: PathBuf,
    /// See `outbox`.
    pub fs: Arc<dyn FileSystem>,
}

impl Settings {
    /// How long a command or read waits for a leader.
    pub fn patience(&self) -> Duration {
        self.election_timeout * PATIENCE_TIMEOUTS
    }

    /// How long a recovered replica votes for nobody: its leader's lease and a little for clocks that run at different rates.
    pub(super) fn quarantine(&self) -> Duration {
        if planted::is(Bug::NoQuarantine) {
            return Duration::ZERO;
        }
        self.election_timeout + self.election_timeout / 20
    }

    /// How long a leader without a quorum is silent, and then speaks, in turns: the shortest that lets the others elect another one.
    pub(super) fn silence(&self) -> Duration {
        self.election_timeout * 2
    }

    /// openraft's settings; notes on each are in ARCHITECTURE.md.
    pub(super) fn openraft(&self, pristine: bool) -> Result<Arc<Config>> {
        let config = Config {
            // See `Group::beat`, which does the same to entries.
            quorum_loss_probe_interval: Some(millis(self.silence())),
            // The node cuts logs. A limit of openraft's own besides would contradict a cut that waits to be done.
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_elect: pristine,
            ..config(self.election_timeout, self.heartbeat_interval)
        };
        config.validate().map(Arc::new).map_err(|error| {
            Error::new(Reason::Internal, format!("the settings of Raft do not fit: {error}"))
        })
    }
}

/// What follows from the two times.
fn config(election_timeout: Duration, heartbeat_interval: Duration) -> Config {
    Config {
        cluster_name: "kvstore".to_owned(),
        election_timeout_min: millis(election_timeout) * 2 / 3,
        election_timeout_max: millis(election_timeout),
        // `Group::beat` gives the signs of life. From this openraft only derives how long one may take to be answered, and how often a group looks at the
        // clock, which is most of what an idle one costs: 13/64 of it, 67 ms of an election timeout of a second.
        enable_heartbeat: false,
        heartbeat_interval: millis(election_timeout) / 3,
        heartbeat_min_interval: Some(millis(heartbeat_interval) * 2 / 3),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        max_payload_entries: APPEND_ENTRIES_MAX,
        max_append_entries: Some(2 * APPEND_ENTRIES_MAX),
        snapshot_policy: SnapshotPolicy::Never,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        // For statistics that are not built in: 150 KiB for each group, unless as few as possible are asked for.
        log_stage_capacity: Some(1),
        ..Config::default()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_times_that_may_be_configured_fits_openraft() {
        for election_ms in (50..1100).chain([5_000, 300_000]) {
            for heartbeat_ms in 10..=election_ms / 3 {
                let [election, heartbeat] = [election_ms, heartbeat_ms].map(Duration::from_millis);
                let fits = config(election, heartbeat).validate();
                assert!(fits.is_ok(), "{election:?}, {heartbeat:?}: {fits:?}");
            }
        }
    }
}
