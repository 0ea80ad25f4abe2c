//! What operators do in a run: nodes join, are drained and take part again, leave, or are lost for good and replaced; settings change. All of it at any moment, through any
//! node, as well as it works; what was refused or is in doubt is tried again at the end.

use std::time::Duration;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use tokio::time::{Instant, sleep, timeout};

use super::cluster::newcomer;
use super::nemesis::Nemesis;
use super::network::NodeIndex;
use crate::cluster::{ClusterState, Life, Refused};
use crate::error::{Error, Reason, Result};
use crate::raft::types::NodeName;

/// How long what was begun may take to end.
const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// How long an operator waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

impl Nemesis {
    /// One thing that an operator does.
    pub(super) async fn operate(&mut self) {
        self.part().await;
        if !self.lost.is_empty() {
            // Whoever drains another node now may leave too few.
            return self.remove_lost().await;
        }
        match self.random.random_range(0..11) {
            0..4 => self.join().await,
            4 | 5 => {
                let node = self.some_node();
                self.remove(node).await;
            }
            6 => self.drain().await,
            7 | 8 => self.lose().await,
            9 => self.change_settings().await,
            _ => self.give_back().await,
        }
    }

    /// Has the cluster agree on a transition, through some node.
    async fn ask<T>(
        &mut self,
        transition: impl FnMut(&mut ClusterState) -> std::result::Result<T, Refused>,
    ) -> Result<T> {
        let running = self.cluster.all_running();
        let Some((_, node)) = running.choose(&mut self.random) else {
            return Err(Error::new(Reason::NotServing, "all nodes are down"));
        };
        timeout(PATIENCE, node.node.meta().change(transition)).await.unwrap_or_else(|_| {
            Err(Error::new(Reason::OutcomeUnknown, "the cluster did not answer in time"))
        })
    }

    /// A spare is let in and started.
    async fn join(&mut self) {
        let spares = self.cluster.spares();
        if let Some(&node) = spares.choose(&mut self.random) {
            self.let_in(node).await;
        }
    }

    async fn let_in(&mut self, node: NodeIndex) {
        let name = self.cluster.name(node).clone();
        let admitted = self.ask(|state| {
            state.admit(newcomer(&name))?;
            Ok(state.members.get(&name).map_or(0, |member| member.meta))
        });
        if let Ok(meta) = admitted.await {
            self.deeds.joins += 1;
            self.cluster.joined(node, meta);
            self.start(node).await;
        }
    }

    async fn remove(&mut self, node: NodeIndex) {
        let name = self.cluster.name(node).clone();
        if self.ask(|state| state.remove(&name)).await.is_ok() {
            self.deeds.leaves += 1;
        }
    }

    async fn drain(&mut self) {
        let node = self.some_node();
        let name = self.cluster.name(node).clone();
        if self.ask(|state| state.drain(&name)).await.is_ok() {
            self.deeds.drains += 1;
        }
    }

    /// A node that was drained holds shards again.
    async fn give_back(&mut self) {
        let drained = |state: &ClusterState| {
            let mut members = state.members.iter();
            let found = members.find(|(_, member)| member.life == Life::Draining);
            found.map(|(name, _)| name.clone())
        };
        let name = self.cluster.state().and_then(|state| drained(&state));
        if let Some(name) = name {
            let _ = self.ask(|state| state.restore(&name)).await;
        }
    }

    async fn change_settings(&mut self) {
        let (replication_factor, moves_max) =
            (self.random.random_range(1..=3), self.random.random_range(1..=4));
        let _ = self
            .ask(|state| {
                let mut settings = state.settings.clone();
                (settings.replication_factor, settings.moves_max) = (replication_factor, moves_max);
                state.set(settings)
            })
            .await;
    }

    /// A node and its disk are lost for good, while everything else is well, and it is removed.
    async fn lose(&mut self) {
        let patience = Instant::now() + PATIENCE;
        while self.cluster.arrived().is_err() {
            if Instant::now() > patience {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        let Some(state) = self.cluster.state() else { return };
        let bears = |shard: &crate::cluster::Shard| shard.voters.len() >= 3;
        let usable = state.members.values().filter(|member| member.life == Life::Member).count();
        let wanted = state.settings.replication_factor as usize;
        if !state.shards.iter().all(bears) || usable <= wanted || state.members.len() < 4 {
            return;
        }
        let node = self.some_node();
        self.deeds.losses += 1;
        self.cluster.crash(node, false);
        self.cluster.gone(node);
        self.lost.push(self.cluster.name(node).clone());
        self.remove_lost().await;
    }

    async fn remove_lost(&mut self) {
        for name in self.lost.clone() {
            if self.ask(|state| state.remove(&name)).await.is_ok() {
                self.lost.retain(|other| *other != name);
            }
        }
    }

    /// Nodes that the cluster has let go of are switched off.
    pub(super) async fn part(&mut self) {
        let running = self.cluster.all_running();
        let Some((_, node)) = running.choose(&mut self.random) else { return };
        let Ok(Ok(state)) = timeout(PATIENCE, node.node.meta().confirmed()).await else { return };
        self.cluster.switch_off_removed(&state);
    }

    /// Brings to an end what was begun: everything works now.
    pub(super) async fn finish_operations(&mut self) {
        self.remove_lost().await;
        let deadline = Instant::now() + ENDED_WITHIN;
        while !self.spares_are_in().await && Instant::now() < deadline {
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Starts the spares that were let in without that whoever asked for it has heard. Whether there is none any more, as far as the cluster answers.
    async fn spares_are_in(&mut self) -> bool {
        let members =
            |state: &ClusterState| -> Vec<NodeName> { state.members.keys().cloned().collect() };
        let Ok(names) = self.ask(|state| Ok(members(state))).await else { return false };
        let is_member = |node: &NodeIndex| names.contains(self.cluster.name(*node));
        let waiting: Vec<_> = self.cluster.spares().into_iter().filter(is_member).collect();
        for node in &waiting {
            self.let_in(*node).await;
        }
        let spares = self.cluster.spares();
        waiting.iter().all(|node| !spares.contains(node))
    }
}
