//! What operators ask of nodes: counts, state and health; maintenance.

use std::io::Write as _;

use serde_json::{Map, Value, json};

use super::args::{Connection, FormArgs};
use super::error::{Error, Result};
use super::output::{Output, age, count, size, whole};
use crate::net::{Client, Failure};
use crate::proto::admin::{CompactRequest, FlushRequest, StatusRequest, StatusResponse};
use crate::proto::v1::{StatsRequest, StatsResponse};

/// Looks at every node of `--endpoint`, one after the other.
#[derive(clap::Args)]
pub(super) struct Look {
    #[command(flatten)]
    pub(super) form: FormArgs,
    #[command(flatten)]
    pub(super) connection: Connection,
}

impl Look {
    /// Shows what `look` finds at each node. One that cannot be asked is told and fails the command in the end; the others are
    /// shown all the same.
    async fn each<A>(
        &self,
        output: &mut Output,
        look: impl AsyncFn(&Client) -> Result<A, Failure>,
        show: impl Fn(&mut Output, A, bool) -> Result<()>,
    ) -> Result<()> {
        let mut all = true;
        for client in self.connection.clients() {
            match look(&client).await {
                Ok(answer) => show(output, answer, self.form.is_json())?,
                Err(failure) => {
                    all = false;
                    output.finish()?;
                    let _ = writeln!(std::io::stderr(), "{}", Error::Call(failure));
                }
            }
        }
        if all { Ok(()) } else { Err(Error::Told) }
    }

    pub(super) async fn stats(self, output: &mut Output) -> Result<()> {
        self.each(output, async |client| client.stats(StatsRequest {}).await, show_stats).await
    }

    pub(super) async fn status(self, output: &mut Output) -> Result<()> {
        self.each(output, async |client| client.status(StatusRequest {}).await, show_status).await
    }

    /// Every node has to be ready.
    pub(super) async fn health(self, output: &mut Output) -> Result<()> {
        let look = async |client: &Client| client.status(StatusRequest {}).await;
        self.each(output, look, |output, status, json| {
            let (node, reason) = (&status.node, &status.not_ready_reason);
            if json {
                output.json(&json!({ "node": node, "ready": status.ready, "reason": reason }))?;
            } else if status.ready {
                output.line(&format!("{node} is ready"))?;
            }
            if status.ready {
                return Ok(());
            }
            Err(Error::Failed(format!("NOT_SERVING: {node} is not ready: {reason}")))
        })
        .await
    }
}

fn show_stats(output: &mut Output, stats: StatsResponse, json: bool) -> Result<()> {
    let mut operations: Vec<(String, u64)> =
        stats.operations.into_iter().map(|(name, count)| (name, whole(count))).collect();
    operations.sort();
    if json {
        let shard = |shard: &crate::proto::v1::ShardStats| {
            json!({
                "shard": shard.shard,
                "keys": whole(shard.keys),
                "bytes": whole(shard.bytes),
                "version": whole(shard.version),
                "writes": whole(shard.writes),
                "reads": whole(shard.reads),
            })
        };
        return output.json(&json!({
            "node": stats.node,
            "uptimeSeconds": stats.uptime_seconds,
            "keys": whole(stats.keys),
            "bytes": whole(stats.bytes),
            "diskBytes": whole(stats.disk_bytes),
            "memoryBytes": whole(stats.memory_bytes),
            "operations": operations.into_iter().map(|(n, c)| (n, c.into())).collect::<Map<_, _>>(),
            "shards": stats.shards.iter().map(shard).collect::<Vec<_>>(),
        }));
    }
    let mut rows = vec![
        pair("node", stats.node),
        pair("up for", age(stats.uptime_seconds)),
        pair("keys", whole(stats.keys).to_string()),
        pair("data", size(whole(stats.bytes))),
        pair("on disk", size(whole(stats.disk_bytes))),
        pair("in memory", size(whole(stats.memory_bytes))),
    ];
    rows.extend(operations.into_iter().map(|(name, count)| pair(&name, count.to_string())));
    output.table(&rows)?;
    output.line("")?;
    let mut shards = vec![row(["SHARD", "KEYS", "DATA", "VERSION", "WRITES", "READS"])];
    shards.extend(stats.shards.iter().map(|shard| {
        vec![
            shard.shard.to_string(),
            whole(shard.keys).to_string(),
            size(whole(shard.bytes)),
            whole(shard.version).to_string(),
            whole(shard.writes).to_string(),
            whole(shard.reads).to_string(),
        ]
    }));
    output.table(&shards)
}

fn show_status(output: &mut Output, status: StatusResponse, json: bool) -> Result<()> {
    let mut figures: Vec<(String, f64)> = status.engine_figures.into_iter().collect();
    figures.sort_by(|a, b| a.0.cmp(&b.0));
    if json {
        let figures: Map<String, Value> =
            figures.into_iter().map(|(name, figure)| (name, figure.into())).collect();
        return output.json(&json!({
            "node": status.node,
            "version": status.version,
            "engine": status.engine,
            "ready": status.ready,
            "notReadyReason": status.not_ready_reason,
            "writable": status.writable,
            "shards": status.shards,
            "uptimeSeconds": status.uptime_seconds,
            "diskBytes": whole(status.disk_bytes),
            "memoryBytes": whole(status.memory_bytes),
            "engineFigures": figures,
        }));
    }
    let ready = match status.not_ready_reason {
        reason if !status.ready => format!("no: {reason}"),
        _ => "yes".to_owned(),
    };
    let mut rows = vec![
        pair("node", status.node),
        pair("version", status.version),
        pair("up for", age(status.uptime_seconds)),
        pair("ready", ready),
        pair("takes writes", if status.writable { "yes" } else { "no" }),
        pair("shards", status.shards.to_string()),
        pair("engine", status.engine),
        pair("on disk", size(whole(status.disk_bytes))),
        pair("in memory", size(whole(status.memory_bytes))),
    ];
    rows.extend(figures.into_iter().map(|(name, figure)| pair(&name, figure.to_string())));
    output.table(&rows)
}

/// `kvstore compact`.
#[derive(clap::Args)]
pub(super) struct Compact {
    /// Only this shard
    #[arg(long, value_name = "NUMBER")]
    shard: Option<u32>,
    #[command(flatten)]
    look: Look,
}

impl Compact {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        let request = CompactRequest { shard: self.shard };
        let shards = self.look.connection.client().compact(request).await?.shards;
        let said = format!("compacted {}", count(shards.into(), "shard", "shards"));
        self.look.form.done(output, &said, &json!({ "shards": shards }))
    }
}

/// `kvstore flush`.
#[derive(clap::Args)]
pub(super) struct Flush {
    #[command(flatten)]
    look: Look,
}

impl Flush {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        self.look.connection.client().flush(FlushRequest {}).await?;
        self.look.form.done(output, "flushed", &json!({ "flushed": true }))
    }
}

impl FormArgs {
    /// Says that something was done.
    pub(super) fn done(&self, output: &mut Output, text: &str, object: &Value) -> Result<()> {
        if self.is_json() { output.json(object) } else { output.line(text) }
    }
}

pub(super) fn pair(name: &str, value: impl Into<String>) -> Vec<String> {
    vec![name.to_owned(), value.into()]
}

pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}
