//! One client for both systems: the same library, connections, calls and checks. Only the messages differ.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::cluster::Cluster;
use crate::proto::etcdserverpb as etcd;
use crate::proto::kvstore::v1 as kvstore;
use crate::rows::Spread;
use crate::{Outcome, System};

/// How long a cluster may take to become healthy.
const PATIENCE: Duration = Duration::from_mins(1);

/// Time between two looks whether it is.
const PAUSE: Duration = Duration::from_millis(50);

/// A cluster is healthy when each node answers reads of so many keys: with one for each shard it has, and many more.
const HEALTHY_READS: u64 = 1_000;

/// Makes calls over one connection. Cloned, it shares the connection.
#[derive(Debug, Clone)]
pub enum Client {
    Etcd(etcd::kv_client::KvClient<Channel>),
    Kvstore(kvstore::kv_service_client::KvServiceClient<Channel>),
}

impl Client {
    fn new(system: System, channel: Channel) -> Self {
        match system {
            System::Etcd => Self::Etcd(etcd::kv_client::KvClient::new(channel)),
            System::Kvstore => {
                Self::Kvstore(kvstore::kv_service_client::KvServiceClient::new(channel))
            }
        }
    }

    /// Stores one value.
    pub async fn put(&mut self, key: String, value: Bytes) -> Result<(), Status> {
        match self {
            Self::Etcd(client) => {
                client.put(etcd::PutRequest { key: key.into(), value }).await?;
            }
            Self::Kvstore(client) => {
                let text = String::from_utf8(value.into())
                    .map_err(|_| Status::internal("a value of this benchmark is not text"))?;
                let content = Some(kvstore::put_request::Content::Value(text));
                client.put(kvstore::PutRequest { key, content, ..Default::default() }).await?;
            }
        }
        Ok(())
    }

    /// Reads one value, linearizable, which is the default of both.
    pub async fn get(&mut self, key: String) -> Result<Option<Bytes>, Status> {
        match self {
            Self::Etcd(client) => {
                let request = etcd::RangeRequest { key: key.into(), serializable: false };
                let found = client.range(request).await?.into_inner().kvs;
                Ok(found.into_iter().next().map(|pair| pair.value))
            }
            Self::Kvstore(client) => {
                let request = kvstore::GetRequest { key, ..Default::default() };
                match client.get(request).await.map(|response| response.into_inner().content) {
                    Ok(Some(kvstore::get_response::Content::Value(text))) => Ok(Some(text.into())),
                    Ok(Some(kvstore::get_response::Content::Raw(bytes))) => Ok(Some(bytes)),
                    Ok(None) => Err(Status::internal("an answer without a value")),
                    Err(status) if status.code() == Code::NotFound => Ok(None),
                    Err(status) => Err(status),
                }
            }
        }
    }
}

/// The connections that one caller uses.
#[derive(Debug)]
pub struct Choice {
    /// Lists, in each of which one is taken after the other.
    lists: Vec<Vec<Client>>,
    /// Which list has the leader of each shard; empty when there is one list.
    leaders: Arc<[usize]>,
    calls: usize,
}

impl Choice {
    /// The next connection, for a call about `key`.
    pub fn next(&mut self, key: &str) -> &mut Client {
        let list = if self.leaders.is_empty() {
            0
        } else {
            let hash = u128::from(xxhash_rust::xxh64::xxh64(key.as_bytes(), 0));
            let shard = (hash * self.leaders.len() as u128) >> 64;
            self.leaders[usize::try_from(shard).expect("a slice is below the number of shards")]
        };
        self.calls += 1;
        let list = &mut self.lists[list];
        let turn = self.calls % list.len();
        &mut list[turn]
    }
}

/// Connections to all nodes of a cluster.
#[derive(Debug)]
pub struct Connections {
    /// For each node, as many as were asked for.
    nodes: Vec<Vec<Client>>,
    /// The node that gets the calls of rows with one node: etcd's leader, any of kvstore, where each leads a part of the shards.
    one: usize,
    /// The node that leads each shard of kvstore.
    leaders: Arc<[usize]>,
}

impl Connections {
    /// Connects, and waits until every node answers linearizable reads.
    pub async fn open(cluster: &mut Cluster, to_each: usize) -> Outcome<Self> {
        let deadline = Instant::now() + PATIENCE;
        let mut nodes = Vec::new();
        for number in 0..cluster.nodes.len() {
            let endpoint = Endpoint::from_shared(cluster.nodes[number].address.clone())?;
            let mut connections = Vec::new();
            while connections.len() < to_each {
                match endpoint.connect().await {
                    Ok(channel) => connections.push(Client::new(cluster.system, channel)),
                    Err(error) => pause(cluster, deadline, &error).await?,
                }
            }
            nodes.push(connections);
        }
        for connections in &nodes {
            for index in 0..HEALTHY_READS {
                while let Err(status) = connections[0].clone().get(crate::keys::key(index)).await {
                    pause(cluster, deadline, &status).await?;
                }
            }
        }
        let one = match cluster.system {
            System::Etcd => leader(cluster).await?,
            System::Kvstore => 0,
        };
        Ok(Self { nodes, one, leaders: Arc::default() })
    }

    /// Asks kvstore where the leaders are now.
    pub async fn learn(&mut self, cluster: &mut Cluster) -> Outcome<()> {
        let Client::Kvstore(mut client) = self.nodes[0][0].clone() else { return Ok(()) };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ring = client.get_ring(kvstore::GetRingRequest {}).await?.into_inner();
            let leader = |shard: &kvstore::RingShard| {
                let node = ring.nodes.get(usize::try_from(shard.leader?).ok()?)?;
                cluster.nodes.iter().position(|other| other.name == node.id)
            };
            if let Some(leaders) = ring.placements.iter().map(leader).collect::<Option<Vec<_>>>() {
                self.leaders = leaders.into();
                return Ok(());
            }
            pause(cluster, deadline, &Status::unavailable("a shard has no leader")).await?;
        }
    }

    /// The connections that a caller takes in turn, one for each call, as etcd's own client does. Each caller begins with another.
    pub fn of_caller(&self, caller: usize, spread: Spread) -> Choice {
        let to_all = || {
            // First one to each node, then the next to each.
            let to_each = self.nodes.first().map_or(0, Vec::len);
            let turns =
                (0..to_each).flat_map(|turn| self.nodes.iter().map(move |node| &node[turn]));
            vec![turns.cloned().collect()]
        };
        let lists = match spread {
            Spread::All => to_all(),
            Spread::Leader if !self.leaders.is_empty() => self.nodes.clone(),
            Spread::One | Spread::Leader => vec![self.nodes[self.one].clone()],
        };
        let leaders = if lists.len() > 1 { Arc::clone(&self.leaders) } else { Arc::default() };
        Choice { lists, leaders, calls: caller }
    }
}

/// Waits a little; fails when that has been done for too long, or a process is gone.
async fn pause(
    cluster: &mut Cluster,
    deadline: Instant,
    reason: &(dyn std::error::Error + Sync),
) -> Outcome<()> {
    cluster.check()?;
    if Instant::now() > deadline {
        let system = cluster.system.name();
        return Err(format!("{system} is not healthy after {PATIENCE:?}: {reason}").into());
    }
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

/// Which node of etcd leads.
async fn leader(cluster: &Cluster) -> Outcome<usize> {
    for (number, node) in cluster.nodes.iter().enumerate() {
        let channel = Endpoint::from_shared(node.address.clone())?.connect().await?;
        let mut client = etcd::maintenance_client::MaintenanceClient::new(channel);
        let status = client.status(etcd::StatusRequest {}).await?.into_inner();
        if status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok(number);
        }
    }
    Err("no member of etcd says that it leads".into())
}
