//! The log is cut behind snapshots: when it has grown, as the node asks (`raft/node`), and before a replica comes that would otherwise get all of it.

use std::collections::BTreeSet;

use openraft::async_runtime::WatchReceiver as _;

use super::{Group, ReplicaId, Status, TypeConfig};

impl Group {
    /// Makes a snapshot, so that the log can be cut behind it.
    pub async fn snapshot(&self) {
        if let Err(fatal) = self.raft.trigger().snapshot().await {
            tracing::error!(group = %self.id, %fatal, "no snapshot");
        }
    }

    /// Cuts the log behind the snapshot there is, but for the `keep` entries before its end.
    pub async fn purge(&self, keep: u64) {
        let upto = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let snapshot = metrics.snapshot.map_or(0, |log_id| log_id.index);
            let purged = metrics.purged.map_or(0, |log_id| log_id.index);
            snapshot.checked_sub(keep).filter(|upto| *upto > purged)
        };
        if let Some(upto) = upto
            && let Err(fatal) = self.raft.trigger().purge_log(upto).await
        {
            tracing::error!(group = %self.id, %fatal, "the log is not cut");
        }
    }

    /// Cuts a log that goes back to the beginning and is long, so that a replica that is about to come gets files: they are sent at a bounded rate, and are written
    /// and synced in large pieces, where entries are replicated as fast as they can be read. What a replica lacks that answers is kept. Best effort: without
    /// it the replica gets entries.
    pub(super) async fn cut_for_newcomers(&self) {
        let long = |bytes| bytes > self.settings.log_sent_bytes;
        if !self.log.bytes_from_the_beginning().is_some_and(long) {
            return;
        }
        let status = self.status();
        self.snapshot().await;
        let covers_all = |metrics: &openraft::RaftMetrics<TypeConfig>| {
            metrics.snapshot.is_some_and(|at| at.index >= status.applied_index)
        };
        let wait = self.raft.wait(Some(self.settings.patience()));
        if let Err(error) = wait.metrics(covers_all, "a snapshot for a replica that comes").await {
            tracing::debug!(group = %self.id, %error, "the log is not cut for a replica that comes");
            return;
        }
        let answers = self.answering(self.settings.election_timeout);
        self.purge(lacked(&self.status(), &answers)).await;
    }
}

/// How many entries, counted back from the end of the snapshot, a replica lacks that answers.
fn lacked(status: &Status, answers: &BTreeSet<ReplicaId>) -> u64 {
    let lags = status.lag.iter().filter(|(replica, _)| answers.contains(replica));
    let lag = lags.map(|(_, lag)| lag.unwrap_or(status.last_index)).max().unwrap_or(0);
    lag.saturating_sub(status.last_index.saturating_sub(status.snapshot_index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_replica_lacks_that_answers_stays_behind_the_snapshot() {
        let lacked = |lag: &[(ReplicaId, Option<u64>)]| {
            let lag = lag.iter().copied().collect();
            let status = Status { lag, last_index: 100, snapshot_index: 90, ..Status::default() };
            super::lacked(&status, &BTreeSet::from([1, 2, 3]))
        };
        assert_eq!(lacked(&[]), 0, "nobody else");
        assert_eq!(lacked(&[(2, Some(0)), (3, Some(10))]), 0, "the snapshot covers nothing of it");
        assert_eq!(lacked(&[(2, Some(12)), (3, Some(30))]), 20);
        assert_eq!(
            lacked(&[(2, Some(30)), (4, Some(80))]),
            20,
            "one that does not answer gets files"
        );
        assert_eq!(lacked(&[(2, None)]), 90, "nobody knows yet what it lacks");
    }
}
