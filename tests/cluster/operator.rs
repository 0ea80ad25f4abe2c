//! What operators do with a cluster and see of it: the commands of `kvstore`, and where every shard is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use kvstore::proto::admin::{ListNodesRequest, ListShardsRequest, Node, Shard};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::process::admin;

/// How long a cluster may take until every shard is where it is to be.
const SETTLES_WITHIN: Duration = Duration::from_mins(1);

/// Time between two looks whether it is.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long the node that leads the meta group is looked for.
const META_LED_WITHIN: Duration = Duration::from_secs(30);

/// A cluster as one of its nodes sees it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) shards: Vec<Shard>,
}

impl Seen {
    /// What a node says; nothing if it does not answer.
    async fn of(grpc: SocketAddr) -> Option<Self> {
        let mut admin = admin(grpc).await?;
        let nodes = admin.list_nodes(ListNodesRequest {}).await.ok()?.into_inner().nodes;
        let shards = admin.list_shards(ListShardsRequest {}).await.ok()?.into_inner().shards;
        Some(Self {
            nodes: nodes.into_iter().map(|node| (node.id.clone(), node)).collect(),
            shards,
        })
    }

    /// Why the cluster does not yet consist of `names`, with every shard where it is to be.
    fn unsettled(&self, names: &BTreeSet<&str>, shards: u32) -> Option<String> {
        let members: BTreeSet<&str> = self.nodes.keys().map(String::as_str).collect();
        if members != *names {
            return Some(format!("the members are {members:?}"));
        }
        if self.shards.len() != shards as usize {
            return Some(format!("{} shards are known", self.shards.len()));
        }
        let moves = self.shards.iter().find(|shard| !is_at_home(shard));
        moves.map(|shard| format!("a shard moves: {shard:?}"))
    }
}

/// Whether a shard is where it is to be, and nothing is under way.
fn is_at_home(shard: &Shard) -> bool {
    let here: BTreeSet<&String> = shard.voters.iter().collect();
    let wanted: BTreeSet<&String> = shard.target.iter().collect();
    here == wanted && shard.change.is_none() && shard.learners.is_empty()
}

impl Cluster {
    /// Runs a command of operators against the nodes that run: what it prints, or what it fails with.
    pub(crate) async fn kvstore(&self, arguments: &[&str]) -> Result<String, String> {
        let running = self.nodes.iter().filter(|node| node.is_running());
        let endpoints: Vec<String> = running.map(|node| format!("http://{}", node.grpc)).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvstore"));
        command.env_clear().env("KVSTORE_ENDPOINTS", endpoints.join(",")).args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output.await.expect("it does not panic").expect("the program is built");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text").trim_end().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// As [`Self::kvstore`], until it is done, as an operator would while nodes fail.
    pub(crate) async fn kvstore_at_last(&self, arguments: &[&str]) {
        let deadline = Instant::now() + SETTLES_WITHIN;
        while let Err(why) = self.kvstore(arguments).await {
            assert!(Instant::now() < deadline, "{arguments:?}: {why}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The cluster as the first node that answers sees it.
    pub(crate) async fn seen(&self) -> Option<Seen> {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            let seen = Seen::of(node.grpc).await;
            if seen.is_some() {
                return seen;
            }
        }
        None
    }

    /// Waits until all nodes of this cluster see that these are the members, and that every shard is where it is to be.
    pub(crate) async fn settles(&self, names: &[&str]) {
        self.settles_when(names, |_| true).await;
    }

    /// As [`Self::settles`], and until all see that `more` holds as well.
    pub(crate) async fn settles_when(&self, names: &[&str], more: impl Fn(&Seen) -> bool) {
        let members: BTreeSet<&str> = names.iter().copied().collect();
        let deadline = Instant::now() + SETTLES_WITHIN;
        for name in names {
            let node = &self.nodes[self.position(name).expect("a node of this test")];
            loop {
                let why = match Seen::of(node.grpc).await {
                    None => "it does not answer".to_owned(),
                    Some(seen) => match seen.unsettled(&members, self.shards) {
                        Some(why) => why,
                        None if more(&seen) => break,
                        None => format!("it sees {seen:?}"),
                    },
                };
                assert!(Instant::now() < deadline, "{name} sees no end of the moves: {why}");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }

    /// Waits until every node that runs sees a member in this state.
    pub(crate) async fn all_see(&self, name: &str, state: &str) {
        let deadline = Instant::now() + SETTLES_WITHIN;
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            let sees = |seen: &Seen| seen.nodes.get(name).is_some_and(|node| node.state == state);
            while !Seen::of(node.grpc).await.is_some_and(|seen| sees(&seen)) {
                assert!(Instant::now() < deadline, "{} does not see {name} {state}", node.name);
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }

    /// Where the replicas of a shard are read; nothing while that is not known.
    pub(crate) async fn holders(&self, shard: u32) -> Vec<SocketAddr> {
        let seen = self.seen().await;
        let shards = seen.map(|seen| seen.shards).unwrap_or_default();
        let shard = shards.into_iter().find(|other| other.id == shard);
        let names = shard.map(|shard| shard.replicas).unwrap_or_default();
        names.iter().filter_map(|name| Some(self.nodes[self.position(name)?].grpc)).collect()
    }

    /// Waits until a node says in its health why it serves nothing.
    pub(crate) async fn serves_nothing(&self, node: usize, why: &str) {
        let deadline = Instant::now() + SETTLES_WITHIN;
        loop {
            let health = health_of_shards(self.nodes[node].http).await.unwrap_or_default();
            let reason = health["details"]["reason"].as_str().unwrap_or_default();
            if reason.contains(why) {
                return;
            }
            assert!(Instant::now() < deadline, "{}: {health}", self.nodes[node].name);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The node that leads the meta group.
    pub(crate) async fn meta_leader(&self) -> usize {
        let deadline = Instant::now() + META_LED_WITHIN;
        loop {
            for (position, node) in self.nodes.iter().enumerate() {
                if node.is_running() && leads_meta(node.http).await {
                    return position;
                }
            }
            assert!(Instant::now() < deadline, "nobody leads the meta group");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Whether a node says in its health that it leads the meta group.
async fn leads_meta(http: SocketAddr) -> bool {
    let Some(shards) = health_of_shards(http).await else { return false };
    shards["components"]["meta group"]["details"]["role"] == "leader"
}

/// What a node says of its shards.
async fn health_of_shards(http: SocketAddr) -> Option<Value> {
    let answer = reqwest::get(format!("http://{http}/actuator/health")).await.ok()?;
    let mut health = answer.json::<Value>().await.ok()?;
    Some(health["components"]["shards"].take())
}
