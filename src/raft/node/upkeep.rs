//! What is looked after all the time: logs are cut behind snapshots, leaders are spread over the nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Node;
use crate::raft::types::GroupId;
use crate::types::ShardId;

/// How often logs are looked at, and leaders.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a group stays with a leader that is not the preferred one, so that a node that comes back has caught up and
/// stays before it leads.
const MOVE_AFTER: Duration = Duration::from_secs(5);

/// Snapshots that are made at a time, so that not all groups flush at once.
const SNAPSHOTS_AT_A_TIME: usize = 2;

impl Node {
    /// Cuts the logs behind snapshots, and makes these: of groups that wrote much since their last one; and of the one that holds the oldest part of
    /// a log that has grown too long, which then keeps nothing behind its snapshot either.
    pub(super) async fn cut_logs(self: Arc<Self>) {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.log.trim();
            let groups = self.groups.load_full();
            let grown = groups
                .values()
                .filter(|group| group.state().unflushed().bytes >= self.limits.snapshot_bytes);
            let mut due: Vec<_> = grown.take(SNAPSHOTS_AT_A_TIME).collect();
            let laggard = self.log.laggard(self.limits.log_bytes);
            if let Some(group) = laggard.and_then(|laggard| groups.get(&laggard))
                && due.iter().all(|other| other.id() != group.id())
            {
                due.push(group);
            }
            for (id, group) in &*groups {
                let keep = if laggard == Some(*id) { 0 } else { self.settings.log_keep };
                group.purge(keep).await;
            }
            for group in due {
                group.snapshot().await;
            }
        }
    }

    /// Gives the groups that this node leads for another one to that, one at a time.
    pub(super) async fn spread_leaders(self: Arc<Self>) {
        let mut since: BTreeMap<GroupId, Instant> = BTreeMap::new();
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(state) = self.meta.state() else { continue };
            let now = Instant::now();
            for group in self.groups() {
                let id = group.id();
                let preferred = state.preferred_leader(ShardId(id.0));
                let Some(preferred) = preferred.filter(|node| **node != self.settings.node) else {
                    since.remove(&id);
                    continue;
                };
                if !group.is_leader() {
                    since.remove(&id);
                    continue;
                }
                let begun = *since.entry(id).or_insert(now);
                if now.duration_since(begun) < MOVE_AFTER {
                    continue;
                }
                since.insert(id, now);
                if let Err(error) = group.hand_over_to(preferred).await {
                    tracing::debug!(group = %id, %error, "leadership stays here for now");
                }
            }
        }
    }
}
