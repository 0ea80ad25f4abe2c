//! What operators ask of a cluster: its nodes, its shards, what all nodes share. Any node answers.

use clap::Subcommand;
use serde_json::{Value, json};

use super::admin::{Look, pair, row};
use super::args::seconds;
use super::error::Result;
use super::output::{Output, age, size, whole};
use crate::proto::admin::{
    AddNodeRequest, ClusterSettings, DrainNodeRequest, GetClusterSettingsRequest, ListNodesRequest,
    ListShardsRequest, MoveLeaderRequest, Node, RemoveNodeRequest, ReplaceNodeRequest, Shard,
    ShardChange, UpdateClusterSettingsRequest,
};

/// `kvstore node ...`.
#[derive(Subcommand)]
pub(super) enum NodeCommand {
    /// List the nodes of the cluster
    List(Look),
    /// Expect a new node and print the command that starts it; or end the drain of a member
    Add {
        /// Id of the node
        id: String,
        /// Its gRPC address
        #[arg(value_name = "HOST:PORT")]
        address: String,
        #[command(flatten)]
        look: Look,
    },
    /// Take a node out of the cluster for good, once its replicas have moved to others
    Remove {
        /// Its id
        id: String,
        /// Copy nothing from it: for a node that does not run any more. What only it had is lost
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        look: Look,
    },
    /// Move all replicas away from a node, which stays a member
    Drain {
        /// Its id
        id: String,
        #[command(flatten)]
        look: Look,
    },
    /// Put another node in the place of one, which leaves for good
    Replace {
        /// Id of the node that leaves
        id: String,
        /// Id of the node that takes its place; add it first
        by: String,
        #[command(flatten)]
        look: Look,
    },
}

impl NodeCommand {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        match self {
            Self::List(look) => list_nodes(&look, output).await,
            Self::Add { id, address, look } => {
                let request = AddNodeRequest { id: id.clone(), address };
                let command = look.connection.client().add_node(request).await?.start_command;
                let said = if command.is_empty() { format!("{id} stays") } else { command.clone() };
                look.form.done(output, &said, &json!({ "node": id, "startCommand": command }))
            }
            Self::Remove { id, force, look } => {
                let said = format!("{id} is being removed");
                let request = RemoveNodeRequest { id: id.clone(), force };
                look.connection.client().remove_node(request).await?;
                look.form.done(output, &said, &json!({ "node": id }))
            }
            Self::Drain { id, look } => {
                let said = format!("{id} is being drained");
                look.connection.client().drain_node(DrainNodeRequest { id: id.clone() }).await?;
                look.form.done(output, &said, &json!({ "node": id }))
            }
            Self::Replace { id, by, look } => {
                let said = format!("{id} is being replaced by {by}");
                let object = json!({ "node": id, "by": by });
                look.connection.client().replace_node(ReplaceNodeRequest { id, by }).await?;
                look.form.done(output, &said, &object)
            }
        }
    }
}

async fn list_nodes(look: &Look, output: &mut Output) -> Result<()> {
    let found = look.connection.client().list_nodes(ListNodesRequest {}).await?;
    if look.form.is_json() {
        let node = |node: Node| {
            json!({
                "id": node.id,
                "address": node.address,
                "state": node.state,
                "detail": node.detail,
                "replicas": node.replicas,
                "leaders": node.leaders,
                "moving": node.moving,
                "zone": node.zone,
                "weight": node.weight,
                "metaVoter": node.meta_voter,
            })
        };
        let nodes: Vec<Value> = found.nodes.into_iter().map(node).collect();
        return output.json(&json!({ "epoch": found.epoch, "nodes": nodes }));
    }
    let heading =
        ["NODE", "ADDRESS", "STATE", "REPLICAS", "LEADS", "MOVING", "WEIGHT", "META", "ZONE"];
    let mut rows = vec![row(heading)];
    let node = |node: Node| {
        let state = match node.detail {
            detail if detail.is_empty() => node.state,
            detail => format!("{} ({detail})", node.state),
        };
        let meta = if node.meta_voter { "votes" } else { "-" };
        let zone = if node.zone.is_empty() { "-" } else { &node.zone };
        row([
            &node.id,
            &node.address,
            &state,
            &node.replicas.to_string(),
            &node.leaders.to_string(),
            &node.moving.to_string(),
            &node.weight.to_string(),
            meta,
            zone,
        ])
    };
    rows.extend(found.nodes.into_iter().map(node));
    output.table(&rows)
}

/// `kvstore shard ...`.
#[derive(Subcommand)]
pub(super) enum ShardCommand {
    /// List the shards with their leaders and replicas, and what moves
    List(Look),
    /// Hand a shard's leadership to another node
    MoveLeader {
        /// Number of the shard
        shard: u32,
        /// Id of the node that shall lead it
        node: String,
        #[command(flatten)]
        look: Look,
    },
}

impl ShardCommand {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        match self {
            Self::List(look) => list_shards(&look, output).await,
            Self::MoveLeader { shard, node, look } => {
                let said = format!("{node} leads shard {shard}");
                let object = json!({ "shard": shard, "leader": node });
                let request = MoveLeaderRequest { shard, node };
                look.connection.client().move_leader(request).await?;
                look.form.done(output, &said, &object)
            }
        }
    }
}

async fn list_shards(look: &Look, output: &mut Output) -> Result<()> {
    let found = look.connection.client().list_shards(ListShardsRequest {}).await?;
    if look.form.is_json() {
        let shards: Vec<Value> = found.shards.iter().map(shard_object).collect();
        return output.json(&json!({ "shards": shards }));
    }
    let mut rows = vec![row(["SHARD", "LEADER", "REPLICAS", "KEYS", "DATA", "MOVES"])];
    rows.extend(found.shards.into_iter().map(|shard| {
        let leader = if shard.leader.is_empty() { "none" } else { &shard.leader };
        row([
            &shard.id.to_string(),
            leader,
            &shard.replicas.join(","),
            &whole(shard.keys).to_string(),
            &size(whole(shard.bytes)),
            &shard.change.as_ref().map_or_else(|| "-".to_owned(), change_in_words),
        ])
    }));
    output.table(&rows)
}

fn shard_object(shard: &Shard) -> Value {
    let change = shard.change.as_ref().map(|change| {
        json!({
            "from": change.from,
            "to": change.to,
            "step": change.step,
            "entriesBehind": change.entries_behind,
            "progress": change.progress,
            "secondsLeft": change.seconds_left,
        })
    });
    json!({
        "id": shard.id,
        "leader": shard.leader,
        "replicas": shard.replicas,
        "voters": shard.voters,
        "learners": shard.learners,
        "target": shard.target,
        "change": change,
        "keys": whole(shard.keys),
        "bytes": whole(shard.bytes),
    })
}

/// `n1 to n4: copying, 43 %, 120 entries behind, about 2m 5s left`.
fn change_in_words(change: &ShardChange) -> String {
    let route = match (change.from.as_str(), change.to.as_str()) {
        ("", to) => format!("to {to}"),
        (from, "") => format!("off {from}"),
        (from, to) => format!("{from} to {to}"),
    };
    let mut words =
        vec![format!("{route}: {}", change.step), format!("{} %", whole(100.0 * change.progress))];
    if change.entries_behind > 0 {
        words.push(format!("{} entries behind", change.entries_behind));
    }
    words.extend(change.seconds_left.map(|seconds| format!("about {} left", age(seconds))));
    words.join(", ")
}

/// `kvstore cluster ...`.
#[derive(Subcommand)]
pub(super) enum ClusterCommand {
    /// Show what all nodes share, or change what is named
    Settings {
        /// Nodes that hold each shard
        #[arg(long, value_name = "NODES")]
        replication_factor: Option<u32>,
        /// How long a node may be down until its replicas are made anew elsewhere: 90s, 30m, 12h, 7d; 0: never
        #[arg(long, value_name = "TIME", value_parser = seconds)]
        replace_after: Option<u32>,
        /// Most replicas that move at a time in the whole cluster
        #[arg(long, value_name = "REPLICAS")]
        moves: Option<u32>,
        #[command(flatten)]
        look: Look,
    },
}

impl ClusterCommand {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        let Self::Settings { replication_factor, replace_after, moves, look } = self;
        let change = UpdateClusterSettingsRequest {
            replication_factor,
            replace_after_seconds: replace_after,
            moves_max: moves,
        };
        let client = look.connection.client();
        let settings = if change == UpdateClusterSettingsRequest::default() {
            client.get_cluster_settings(GetClusterSettingsRequest {}).await?.settings
        } else {
            client.update_cluster_settings(change).await?.settings
        };
        show_settings(&look, &settings.unwrap_or_default(), output)
    }
}

fn show_settings(look: &Look, settings: &ClusterSettings, output: &mut Output) -> Result<()> {
    let &ClusterSettings { replication_factor, replace_after_seconds, moves_max } = settings;
    if look.form.is_json() {
        return output.json(&json!({
            "replicationFactor": replication_factor,
            "replaceAfterSeconds": replace_after_seconds,
            "movesMax": moves_max,
        }));
    }
    let replace_after = match replace_after_seconds {
        0 => "never".to_owned(),
        seconds => age(f64::from(seconds)),
    };
    output.table(&[
        pair("replication factor", replication_factor.to_string()),
        pair("replace after", replace_after),
        pair("moves at a time", moves_max.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_is_told_in_words() {
        let change = ShardChange {
            from: "n1".to_owned(),
            to: "n4".to_owned(),
            step: "copying".to_owned(),
            entries_behind: 120,
            progress: 0.434,
            seconds_left: Some(120.0),
        };
        let words = "n1 to n4: copying, 43 %, 120 entries behind, about 2m 0s left";
        assert_eq!(change_in_words(&change), words);
        let grows = ShardChange { from: String::new(), step: "joining".to_owned(), ..change };
        let grows = ShardChange { entries_behind: 0, seconds_left: None, ..grows };
        assert_eq!(change_in_words(&grows), "to n4: joining, 43 %");
        let shrinks = ShardChange { from: "n1".to_owned(), to: String::new(), ..grows };
        assert_eq!(change_in_words(&shrinks), "off n1: joining, 43 %");
    }
}
