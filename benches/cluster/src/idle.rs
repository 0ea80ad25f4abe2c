//! What nodes use that nobody asks anything: CPU and memory, with many shards, empty and after a load.

use std::time::{Duration, Instant};

use crate::client::Connections;
use crate::cluster::{Cluster, Node};
use crate::options::Options;
use crate::process::{Usage, resident_bytes};
use crate::rows::preload;
use crate::{Outcome, System, machine};

/// Shards of kvstore. A setting of the command line comes later and wins.
const SHARDS: &str = "kvstore.hash-ring.shards=64";

/// The bars for each node of kvstore.
const CPU_PERCENT_BAR: f64 = 5.0;
const RESIDENT_MIB_BAR: f64 = 150.0;

/// A cluster is quiet when it uses no less in a window than in the one before, to a tenth and a few ticks of the clock.
const WINDOW: Duration = Duration::from_secs(2);
const WINDOW_NOISE: Duration = Duration::from_millis(30);

/// Windows to wait for that.
const WINDOWS_MAX: usize = 30;

/// Measures one system.
pub async fn measure(system: System, time: Duration, options: &Options) -> Outcome<()> {
    let mut settings = vec![SHARDS.to_owned()];
    settings.extend(options.settings.iter().cloned());
    let mut cluster = Cluster::start(system, options, &settings)?;
    let connections = Connections::open(&mut cluster, options.connections).await?;
    sample(&mut cluster, "empty", time, options).await?;
    preload(&connections, options.keys, options.seed).await?;
    sample(&mut cluster, &format!("{} keys", options.keys), time, options).await?;
    cluster.stop()
}

async fn sample(
    cluster: &mut Cluster,
    what: &str,
    time: Duration,
    options: &Options,
) -> Outcome<()> {
    machine::settle(&options.directory)?;
    until_quiet(cluster).await?;
    let of = |node: &Node| Usage::of(node.pid());
    let before = cluster.nodes.iter().map(of).collect::<Outcome<Vec<_>>>()?;
    let start = Instant::now();
    tokio::time::sleep(time).await;
    cluster.check()?;
    let elapsed = start.elapsed().as_secs_f64();
    for (node, before) in cluster.nodes.iter().zip(before) {
        let used = Usage::of(node.pid())? - before;
        let percent = 100.0 * used.cpu.as_secs_f64() / elapsed;
        let (resident, written) = (
            resident_bytes(node.pid())? as f64 / f64::from(1 << 20),
            used.written_bytes as f64 / 1024.0 / elapsed,
        );
        let verdict = match cluster.system {
            System::Etcd => "",
            System::Kvstore if percent < CPU_PERCENT_BAR && resident < RESIDENT_MIB_BAR => "met",
            System::Kvstore => "MISSED",
        };
        println!(
            "| {} | {what} | {} | {percent:.2} | {resident:.1} | {written:.1} | {verdict} |",
            cluster.system.name(),
            node.name
        );
    }
    Ok(())
}

async fn until_quiet(cluster: &mut Cluster) -> Outcome<()> {
    let (mut total, mut last) = (cluster.usage()?.cpu, Duration::MAX);
    for _ in 0..WINDOWS_MAX {
        tokio::time::sleep(WINDOW).await;
        cluster.check()?;
        let now = cluster.usage()?.cpu;
        let used = now.saturating_sub(total);
        if used.saturating_add(used / 10).saturating_add(WINDOW_NOISE) >= last {
            return Ok(());
        }
        (total, last) = (now, used);
    }
    eprintln!("{} did not become quiet", cluster.system.name());
    Ok(())
}

/// The head of the table, and what it says.
pub fn print_head(time: Duration) {
    println!(
        "\nIdle for {time:?}; {SHARDS}; the bar for a node of kvstore: less than {CPU_PERCENT_BAR} % of one core and {RESIDENT_MIB_BAR} MiB\n"
    );
    println!("| system | data | node | CPU % of a core | resident MiB | disk KiB/s | bar |");
    println!("|{}", "---|".repeat(7));
}
