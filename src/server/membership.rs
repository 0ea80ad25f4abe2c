//! A node as a member: how it comes to its cluster, who the other members are, what it says of itself, and who asks it to be let in.
//!
//! Once the node runs, the cluster's state (`raft/meta`) is the truth about members. Two things follow it: what peers are let in and where they are reached
//! (`raft/peers`), and the data directory, so that a node that was restarted knows them before it has heard of the state. The other way round, the node tells the cluster when
//! it is reached elsewhere than the state says, or carries more, or stands in another zone.
//!
//! `kvstore.cluster.members` comes before the state where it names a node's address: it is what the operator of this node knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Error;
use super::forming::{self, about, form, seeds};
use super::identity::DataDirectory;
use crate::cluster::{
    ClusterState, Formed, Incarnation, Newcomer, NodeName, Settings, Standing, Weight, Zone,
};
use crate::config::Config;
use crate::error::Reason;
use crate::net::Endpoint;
use crate::raft::peers::{
    self, About, Addresses, Admits, Admitted, Candidate, Local, Refusal, join,
};
use crate::raft::{Meta, Node, Origin};
use crate::util::fs::{FileSystem, RealFileSystem};

/// How long a member waits for the cluster's state before it asks its seeds, and between two attempts to tell of itself.
const PAUSE: Duration = Duration::from_secs(3);

/// See the [module](self).
pub(super) struct Membership {
    config: Config,
    about: About,
    seeds: Vec<Endpoint>,
    local: Arc<Local>,
}

impl Membership {
    /// Of the node of `config`, whose gRPC port is `grpc_port`.
    ///
    /// # Errors
    ///
    /// When an address in the configuration is none.
    pub(super) fn new(config: &Config, grpc_port: u16, local: &Arc<Local>) -> Result<Self, Error> {
        let mut about = about(config, grpc_port);
        let members = &config.cluster.members;
        if let Some(own) = members.iter().find(|member| member.node == config.node.id) {
            about.address.clone_from(&own.address);
        }
        let (config, local, seeds) = (config.clone(), Arc::clone(local), seeds(config)?);
        Ok(Self { config, about, seeds, local })
    }

    /// Meets the other founders, or asks to be let in; both only once in the life of a data directory.
    ///
    /// # Errors
    ///
    /// When this node cannot be a member as it is set up, or the disk's.
    pub(super) async fn found_or_join(
        &self,
        directory: DataDirectory,
    ) -> Result<(DataDirectory, Formed, Origin), Error> {
        let mut directory = directory;
        if self.local.standing() != Standing::Joining {
            let formed;
            (directory, formed) = form(directory, &self.local).await?;
            if let Some(origin) = self.founder(&formed) {
                return Ok((directory, formed, origin));
            }
            let fs: Arc<dyn FileSystem> = Arc::new(RealFileSystem);
            let holds = Node::holds_meta(&fs, &self.config.storage.data_dir);
            if holds.map_err(|error| Error::Foreign(error.to_string()))? {
                return Ok((directory, formed, Origin::Member));
            }
        }
        // It may have ended between the two before: the answer is the same.
        let (directory, joined) =
            forming::join(directory, &self.local, &self.seeds, &self.about).await?;
        Ok((directory, joined.formed, Origin::Newcomer { meta: joined.meta_replica }))
    }

    /// How this node founds the cluster, if that may not have been done yet.
    fn founder(&self, formed: &Formed) -> Option<Origin> {
        let (own, founders) = (NodeName(self.config.node.id.clone()), formed.members.keys());
        let meta = ClusterState::first_meta_replica(founders.clone(), &own)?;
        let voters = ClusterState::first_meta_voters(founders);
        (formed.revision == 0).then(|| Origin::Founder {
            meta,
            voters,
            state: Box::new(self.first_state(formed)),
        })
    }

    /// What the cluster begins with, if it is founded now.
    fn first_state(&self, formed: &Formed) -> ClusterState {
        let address = |name: &NodeName| {
            let members = &self.config.cluster.members;
            let member = members.iter().find(|member| member.node == name.0);
            member.map(|member| member.address.clone()).unwrap_or_default()
        };
        let founder = |(name, incarnation): (&NodeName, &Incarnation)| Newcomer {
            name: name.clone(),
            incarnation: *incarnation,
            address: address(name),
            weight: Weight::USUAL,
            zone: None,
        };
        let Config { hash_ring: ring, cluster, .. } = &self.config;
        let settings = Settings {
            replication_factor: ring.replication_factor,
            virtual_nodes_per_node: ring.virtual_nodes_per_node,
            replace_after_seconds: cluster.replace_after.map_or(0, |after| after.as_secs()),
            ..Settings::default()
        };
        let founders = formed.members.iter().map(founder).collect();
        ClusterState::found(founders, ring.shards, settings)
    }

    /// Keeps peers and data directory as the cluster's state says, and the state as this node is, until `stopping`.
    pub(super) fn start_tasks(
        self,
        cluster: Uuid,
        directory: DataDirectory,
        node: Arc<Node>,
        stopping: &CancellationToken,
    ) -> [JoinHandle<()>; 2] {
        let this = Arc::new(self);
        let (telling, told) = (Arc::clone(&this), Arc::clone(&node));
        let (stops, ends) = (stopping.clone(), stopping.clone());
        [
            tokio::spawn(async move { this.follow(cluster, directory, &node, &stops).await }),
            tokio::spawn(async move {
                let _ = ends.run_until_cancelled(telling.announce(&told)).await;
            }),
        ]
    }

    async fn follow(
        &self,
        cluster: Uuid,
        mut directory: DataDirectory,
        node: &Node,
        stopping: &CancellationToken,
    ) {
        let meta = node.meta();
        loop {
            let version = meta.version();
            if let Some(state) = meta.state() {
                directory = self.take(cluster, &state, directory).await;
            }
            if stopping.run_until_cancelled(meta.changed(version)).await.is_none() {
                return;
            }
        }
    }

    /// Lets peers be who `state` says they are, where it says they are.
    async fn take(
        &self,
        cluster: Uuid,
        state: &ClusterState,
        mut directory: DataDirectory,
    ) -> DataDirectory {
        let members = state.members.iter();
        let members = members.map(|(name, node)| (name.clone(), node.incarnation)).collect();
        let formed = Formed { cluster, revision: state.revision, members };
        let addresses = self.addresses(state);
        if *self.local.addresses() != addresses {
            self.local.set_addresses(addresses);
        }
        let is_newer = match self.local.standing() {
            Standing::Formed(known) => known.revision < formed.revision,
            Standing::Forming(_) | Standing::Joining => true,
        };
        if is_newer {
            let durable = formed.clone();
            let stored = tokio::task::spawn_blocking(move || {
                let stored = directory.set_formed(&RealFileSystem, durable);
                (directory, stored)
            });
            let (kept, stored) = stored.await.expect("storing does not panic");
            directory = kept;
            if let Err(error) = stored {
                tracing::error!(%error, "the members of the cluster are not noted in the data directory");
            }
            self.local.set_formed(formed);
        }
        directory
    }

    fn addresses(&self, state: &ClusterState) -> Addresses {
        let mut addresses = Addresses::new();
        for (name, node) in &state.members {
            match node.address.parse() {
                Ok(endpoint) => _ = addresses.insert(name.clone(), endpoint),
                Err(why) => {
                    tracing::warn!("node {name} cannot be reached at {}: {why}", node.address);
                }
            }
        }
        for member in &self.config.cluster.members {
            let name = NodeName(member.node.clone());
            if let (true, Ok(endpoint)) =
                (state.members.contains_key(&name), member.address.parse())
            {
                addresses.insert(name, endpoint);
            }
        }
        addresses
    }

    /// Tells the cluster where this node is and what it carries, if it does not know. Other members are asked to, and not the meta group as it is known here: who is reached elsewhere
    /// than before hears nothing of what is agreed on. When no state is known at all, the seeds are asked as well. But a node that leads the meta group reaches all others, and they do not
    /// reach it: nobody else can change anything then.
    async fn announce(&self, node: &Node) {
        let meta = node.meta();
        let own = self.newcomer();
        if timeout(PAUSE, meta.changed(0)).await.is_err() && self.seeds.is_empty() {
            meta.changed(0).await;
        }
        loop {
            let state = meta.state();
            let known = state.as_ref().and_then(|state| state.members.get(&own.name));
            let about = known.map(|known| (&known.address, known.weight, &known.zone));
            if about == Some((&own.address, own.weight, &own.zone)) {
                return;
            }
            tokio::select! {
                joined = join(&self.local, &self.seeds, &self.about) => match joined {
                    Ok(joined) => return self.local.set_addresses(joined.addresses),
                    Err(refusal) => {
                        return tracing::error!("the cluster does not know this node: {refusal}");
                    }
                },
                () = is_led_here(meta) => {}
            }
            match meta.change(|state| state.admit(own.clone())).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%error, "the cluster is not told of this node yet");
                }
            }
            sleep(PAUSE).await;
        }
    }

    fn newcomer(&self) -> Newcomer {
        let who = self.local.who();
        Newcomer {
            name: who.node.clone(),
            incarnation: who.incarnation,
            address: self.about.address.clone(),
            weight: Weight(self.about.weight),
            zone: self.about.zone.clone().map(Zone),
        }
    }
}

/// Returns when this node leads the meta group.
async fn is_led_here(meta: &Meta) {
    while !meta.is_led_here() {
        sleep(PAUSE).await;
    }
}

/// Lets nodes in that ask this one.
pub(super) struct Admission(pub(super) Arc<Node>);

impl Admits for Admission {
    fn admit(&self, candidate: Candidate) -> BoxFuture<'static, Result<Admitted, Refusal>> {
        let node = Arc::clone(&self.0);
        Box::pin(async move {
            let Candidate { node: name, incarnation, address, weight, zone } = candidate;
            let newcomer = Newcomer {
                name: name.clone(),
                incarnation,
                address,
                weight: Weight(weight),
                zone: zone.map(Zone),
            };
            let admitted = node.meta().change(|state| {
                state.admit(newcomer.clone())?;
                let members = state.members.iter();
                let members = members
                    .map(|(name, node)| (name.clone(), (node.incarnation, node.address.clone())));
                let meta_replica = state.members.get(&name).map_or(0, |node| node.meta);
                let members: BTreeMap<_, _> = members.collect();
                Ok(Admitted { revision: state.revision, members, meta_replica })
            });
            admitted.await.map_err(|error| {
                let reason = match error.reason() {
                    Reason::FailedPrecondition => peers::Reason::NotAdmitted,
                    _ => peers::Reason::NotReady,
                };
                Refusal { reason, message: error.message().to_owned() }
            })
        })
    }
}
