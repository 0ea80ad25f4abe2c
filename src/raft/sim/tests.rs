//! Smoke.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::cluster::{Cluster, Shape};
use crate::command::{Change, Command};
use crate::raft::node::LogLimits;
use crate::raft::types::{GroupId, seeded};
use crate::types::{Key, Value};

#[test]
fn a_cluster_elects_writes_and_reads() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let began = std::time::Instant::now();
    seeded(1, || {
        runtime.block_on(async {
            let shape = Shape {
                nodes: 3,
                groups: 2,
                election_timeout: Duration::from_millis(300),
                heartbeat_interval: Duration::from_millis(50),
                log_keep: 10,
                limits: LogLimits { snapshot_bytes: 4 << 10, log_bytes: 64 << 10 },
                segment_bytes: 4 << 10,
                cache_bytes: 4 << 10,
            };
            let cluster = Cluster::new(shape, 1);
            cluster.start_all().await.expect("starts");
            for round in 0..100u32 {
                for group in cluster.groups() {
                    let node = cluster.running(round as usize % 3).expect("runs");
                    let change = Change::Put {
                        key: Key::new(format!("k{round}")).expect("a key"),
                        value: Value::Raw("v".into()),
                        ttl: None,
                        if_version: None,
                    };
                    let ticket = node
                        .group(group)
                        .propose(Command { change, request_id: None })
                        .expect("is queued");
                    let outcome = timeout(Duration::from_secs(5), ticket)
                        .await
                        .expect("in time")
                        .expect("is applied");
                    println!("{} {outcome:?}", cluster.now_ms());
                    let node = cluster.running((round as usize + 1) % 3).expect("runs");
                    timeout(Duration::from_secs(5), node.group(group).confirm())
                        .await
                        .expect("in time")
                        .expect("is confirmed");
                }
                sleep(Duration::from_millis(100)).await;
            }
            println!(
                "{:?} {:?}",
                cluster.network.traffic(),
                cluster.running(0).expect("runs").group(GroupId(0)).status()
            );
            cluster.end().await;
        });
    });
    println!("{:?}", began.elapsed());
}
