//! What goes wrong in a run, as its seed says: crashes of one node, some or all, at any call of the file system, also while it starts; links cut in one
//! direction or both, between two nodes or many; loss and delay; slow disks and disks that fail; clocks that are turned; and what operators do
//! meanwhile: snapshots, leaders moved.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

use super::cluster::Cluster;
use super::network::{NodeIndex, Weather};
use super::record::Record;
use crate::raft::types::{GroupId, NodeName};
use crate::util::fs::sim::{Effect, Fault, Operation, Trigger};

/// What a nemesis may do.
#[derive(Debug, Clone)]
pub(super) struct Appetite {
    /// Crashes and failing disks.
    pub(super) disks: bool,
    /// Cuts, loss and delay.
    pub(super) network: bool,
    /// What operators do to the list of members.
    pub(super) members: bool,
    /// Farthest that a clock is set wrong, in milliseconds.
    pub(super) clock_ms: i64,
}

/// What it did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Deeds {
    /// Nodes that lost power or were killed.
    pub(super) crashes: u64,
    /// Of these, those that lost power in the middle of a call of the file system.
    pub(super) torn: u64,
    /// Crashes of a node that was starting.
    pub(super) crashed_starts: u64,
    /// Links or groups of links that were cut.
    pub(super) cuts: u64,
    /// Calls of disks that failed.
    pub(super) disk_errors: u64,
    /// Nodes that were let in.
    pub(super) joins: u64,
    /// Nodes that were told to leave.
    pub(super) leaves: u64,
    /// Nodes that were drained.
    pub(super) drains: u64,
    /// Nodes that were lost for good.
    pub(super) losses: u64,
}

/// See the [module](self).
pub(super) struct Nemesis {
    pub(super) cluster: Arc<Cluster>,
    record: Arc<Record>,
    appetite: Appetite,
    pub(super) random: StdRng,
    pub(super) deeds: Deeds,
    /// Nodes that were lost for good and are not removed yet.
    pub(super) lost: Vec<NodeName>,
}

impl Nemesis {
    pub(super) fn new(
        cluster: &Arc<Cluster>,
        record: &Arc<Record>,
        appetite: &Appetite,
        seed: u64,
    ) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            record: Arc::clone(record),
            appetite: appetite.clone(),
            random: StdRng::seed_from_u64(seed),
            deeds: Deeds::default(),
            lost: Vec::new(),
        }
    }

    /// Works for so long, then puts everything in order: links, disks, clocks; all nodes run.
    pub(super) async fn work(mut self, duration: Duration) -> Deeds {
        let deadline = Instant::now() + duration;
        for node in self.cluster.present() {
            self.turn_clock(node);
        }
        while Instant::now() < deadline && self.record.violation().is_none() {
            self.pause(800).await;
            self.strike().await;
        }
        self.calm().await;
        self.deeds
    }

    async fn pause(&mut self, most_ms: u64) {
        sleep(Duration::from_millis(self.random.random_range(1..most_ms))).await;
    }

    pub(super) fn some_node(&mut self) -> NodeIndex {
        let present = self.cluster.present();
        present[self.random.random_range(0..present.len())]
    }

    /// A node, rather one that leads.
    fn victim(&mut self) -> NodeIndex {
        let group = GroupId(self.random.random_range(0..self.cluster.shape.groups));
        let any = self.some_node();
        if self.random.random_ratio(1, 2) { self.cluster.leader(group).unwrap_or(any) } else { any }
    }

    async fn strike(&mut self) {
        if self.appetite.members && self.random.random_ratio(1, 2) {
            return self.operate().await;
        }
        let what = self.random.random_range(0..26);
        self.record.trace((self.cluster.now_ms(), what));
        match what {
            0..5 if self.appetite.disks => self.crash_one().await,
            5..7 if self.appetite.disks => self.crash_many().await,
            7..9 if self.appetite.disks => self.break_disk().await,
            9..16 if self.appetite.network => self.cut().await,
            16..18 if self.appetite.network => {
                let weather = self.some_weather();
                self.cluster.network.set_weather(weather);
            }
            18 => {
                let node = self.victim();
                let most = self.random.random_range(1..120);
                self.cluster.set_sync_ms_max(node, most);
            }
            19 | 20 => {
                let node = self.victim();
                if let Some(running) = self.cluster.running(node) {
                    for group in running.node.groups() {
                        group.snapshot().await;
                    }
                }
            }
            21 => self.move_leader(),
            22..25 => {
                let node = self.victim();
                self.turn_clock(node);
            }
            _ => self.cluster.network.heal(),
        }
    }

    fn some_weather(&mut self) -> Weather {
        let slowest = self.random.random_range(1..60);
        let lost_of_1000 = [0, 10, 100, 300][self.random.random_range(0..4)];
        Weather { delay_ms: 0..=slowest, lost_of_1000 }
    }

    fn turn_clock(&mut self, node: NodeIndex) {
        let most = self.appetite.clock_ms;
        let offset = self.random.random_range(-most..=most);
        self.cluster.clock(node).turn(offset);
    }

    /// Crashes a node at some call of its file system, or between two, and starts it again.
    async fn crash_one(&mut self) {
        let node = self.victim();
        self.crash_at_some_call(node).await;
        self.pause(1_200).await;
        self.start(node).await;
    }

    async fn crash_at_some_call(&mut self, node: NodeIndex) {
        if self.cluster.running(node).is_none() {
            return;
        }
        let fs = self.cluster.fs(node);
        if self.random.random_ratio(2, 3) {
            fs.crash_at(fs.steps() + self.random.random_range(0..60));
            let patience = Instant::now() + Duration::from_millis(500);
            while !fs.crashed() && Instant::now() < patience {
                sleep(Duration::from_millis(1)).await;
            }
            self.deeds.torn += u64::from(fs.crashed());
        }
        self.deeds.crashes += 1;
        let killed = !fs.crashed() && self.random.random_ratio(1, 4);
        self.cluster.crash(node, killed);
    }

    /// Crashes several nodes at one moment, or all.
    async fn crash_many(&mut self) {
        let mut nodes = self.cluster.present();
        let count = self.random.random_range(1..nodes.len().max(2)) + 1;
        nodes.shuffle(&mut self.random);
        nodes.truncate(count);
        for &node in &nodes {
            if self.cluster.running(node).is_some() {
                self.deeds.crashes += 1;
                self.cluster.crash(node, false);
            }
        }
        for node in nodes {
            self.pause(400).await;
            self.start(node).await;
        }
    }

    /// Starts a node; now and then it loses power meanwhile.
    pub(super) async fn start(&mut self, node: NodeIndex) {
        if self.cluster.running(node).is_some() {
            return;
        }
        loop {
            let fs = self.cluster.fs(node);
            if self.appetite.disks && self.random.random_ratio(1, 5) {
                fs.crash_at(self.random.random_range(0..40));
            }
            match self.cluster.start(node).await {
                Ok(()) if !fs.crashed() => {
                    // The crash that did not come in time.
                    fs.crash_at(u64::MAX);
                    return;
                }
                Ok(()) => self.cluster.crash(node, false),
                Err(_) if fs.crashed() => self.cluster.lose_power(node),
                Err(error) => {
                    self.record.violate(format!("node {node} does not start: {error}"));
                    return;
                }
            }
            self.deeds.crashed_starts += 1;
        }
    }

    /// Lets calls of a disk fail; the node is started again when it has had its effect.
    async fn break_disk(&mut self) {
        let node = self.victim();
        let fs = self.cluster.fs(node);
        let operations = [Operation::Sync, Operation::Sync, Operation::Write, Operation::SyncDir];
        let operation = operations[self.random.random_range(0..operations.len())];
        let path = ["/node/log", "/node/log", "/node/data"][self.random.random_range(0..3)];
        let effects = [Effect::Io, Effect::Io, Effect::ShortWrite];
        let effect = effects[self.random.random_range(0..effects.len())];
        let times = if self.random.random_ratio(1, 2) { 1 } else { u64::MAX };
        let trigger = Trigger::Calls { operation, path: path.to_owned(), skip: 0, times };
        let before = fs.faults_struck();
        fs.inject(Fault { trigger, effect });
        self.pause(1_500).await;
        fs.clear_faults();
        if fs.faults_struck() > before {
            self.deeds.disk_errors += 1;
            self.pause(300).await;
            self.deeds.crashes += 1;
            self.cluster.crash(node, false);
            self.pause(600).await;
            self.start(node).await;
        }
    }

    async fn cut(&mut self) {
        let nodes = self.cluster.present();
        let network = Arc::clone(&self.cluster.network);
        self.deeds.cuts += 1;
        match self.random.random_range(0..5) {
            0 | 1 => network.isolate(self.victim()),
            // One link in one direction.
            2 => {
                let (from, to) = (self.victim(), self.some_node());
                network.cut(from, to);
            }
            // Two nodes do not see each other, all others see both.
            3 => {
                let (one, other) = (self.victim(), self.some_node());
                network.cut(one, other);
                network.cut(other, one);
            }
            _ => {
                for &from in &nodes {
                    for &to in &nodes {
                        if self.random.random_ratio(1, 3) {
                            network.cut(from, to);
                        }
                    }
                }
            }
        }
        self.pause(2_000).await;
        if self.random.random_ratio(3, 4) {
            network.heal();
        }
    }

    fn move_leader(&mut self) {
        let group = GroupId(self.random.random_range(0..self.cluster.shape.groups));
        let to = self.some_node();
        let Some(running) = self.cluster.leader(group).and_then(|node| self.cluster.running(node))
        else {
            return;
        };
        let name = self.cluster.name(to).clone();
        tokio::spawn(async move {
            // It may not be possible now.
            let _ = running.place(group).move_leader(&name).await;
        });
    }

    async fn calm(&mut self) {
        self.cluster.network.heal();
        self.cluster.network.set_weather(Weather::FINE);
        for node in self.cluster.present() {
            self.cluster.set_sync_ms_max(node, 3);
            let fs = self.cluster.fs(node);
            fs.clear_faults();
            fs.crash_at(u64::MAX);
            let failed = self.cluster.running(node).is_some_and(|running| {
                running.node.status().iter().any(|status| status.failed.is_some())
            });
            if failed || fs.crashed() {
                self.cluster.crash(node, false);
            }
        }
        self.appetite.disks = false;
        for node in self.cluster.present() {
            self.start(node).await;
        }
        if self.appetite.members {
            self.finish_operations().await;
        }
    }
}
