//! What a scraper reads at `/actuator/prometheus` while a node works: that metrics are fed by what they are named after.

use crate::cli::{program, run};
use crate::engine::SMALL;
use crate::node::{PATIENCE, TestNode, eventually, get, put};

async fn text(node: &TestNode) -> String {
    let answer = reqwest::get(node.url("/actuator/prometheus")).await.expect("an answer");
    answer.text().await.expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engines_figures_are_metrics_and_memory_has_none() {
    let node = TestNode::with(&SMALL).await;
    let mut client = node.client().await;
    for number in 0..200 {
        let document = format!("\"{}\"", "x".repeat(1000));
        client.put(put(format!("k/{number}"), document)).await.expect("stored");
        client.get(get(format!("k/{number}"))).await.expect("there");
    }
    run(program().args(["flush", "--endpoint", &node.grpc_url()]), b"").done();
    let metrics = text(&node).await;
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} is missing in\n{metrics}"));
        line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")
    };
    assert!(value("kvstore_engine_flushes ") >= 2.0);
    assert!(value("kvstore_engine_flushed_bytes ") > 100_000.0);
    assert!(value("kvstore_engine_log_syncs ") > 0.0);
    assert!(value("kvstore_disk_usage_bytes{kind=\"log\"}") >= 16.0 * 1024.0 * 1024.0);
    assert!(value("kvstore_disk_usage_bytes{kind=\"tables\"}") > 1000.0);
    for name in [
        "kvstore_engine_level_tables{level=\"0\"}",
        "kvstore_engine_level_bytes{level=\"6\"}",
        "kvstore_engine_compaction_debt_bytes ",
        "kvstore_engine_compactions{reason=\"size\"}",
        "kvstore_engine_delays{reason=\"level_zero\"}",
        "kvstore_engine_stops{reason=\"memtables\"}",
        "kvstore_engine_delayed_millis{reason=\"debt\"}",
        "kvstore_engine_write_amplification ",
        "kvstore_engine_read_amplification_max ",
        "kvstore_engine_space_amplification_estimate ",
        "kvstore_engine_lookups_filtered ",
    ] {
        assert!(value(name) >= 0.0, "{name}");
    }
    let node = TestNode::with(&["kvstore.storage.engine=memory"]).await;
    let metrics = text(&node).await;
    assert!(!metrics.contains("kvstore_engine_"), "{metrics}");
    assert!(metrics.contains("kvstore_memory_usage_bytes{kind=\"cache\"}"), "{metrics}");
}

/// The log of the engines on a node that runs alone, that of the groups on a member of a cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synced_write_moves_the_metrics_of_the_log() {
    for settings in [&[][..], &["kvstore.cluster.members=node1=127.0.0.1:9090"]] {
        let node = TestNode::with(settings).await;
        let mut client = node.client().await;
        eventually("the node takes writes", || {
            let mut client = client.clone();
            async move { client.put(put("first", "1")).await.is_ok() }
        })
        .await;
        let before = Log::of(&node).await;
        assert!(before.syncs > 0.0, "an opening syncs as well");
        for number in 0..10 {
            client.put(put("k", number.to_string())).await.expect("stored");
        }
        let after = Log::of(&node).await;
        assert!(after.syncs >= before.syncs + 10.0, "one after the other: {settings:?}");
        assert!(after.seconds > before.seconds && after.seconds < PATIENCE.as_secs_f64());
        assert_eq!(after.groups, after.syncs, "every sync has a group");
        assert!(after.writes >= before.writes + 10.0, "each of them waits for its sync");
        assert!(after.alone > before.alone, "who is alone is a group of one");
    }
}

/// The metrics of a log, read and checked as a scraper does.
struct Log {
    syncs: f64,
    seconds: f64,
    groups: f64,
    writes: f64,
    /// Syncs that served one write.
    alone: f64,
}

impl Log {
    async fn of(node: &TestNode) -> Self {
        let text = text(node).await;
        let (syncs, seconds) = histogram(&text, "kvstore_wal_fsync_duration_seconds");
        let (groups, writes) = histogram(&text, "kvstore_wal_group_size");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("kvstore_wal_group_size_bucket{le=\"1\"} "));
        let alone = line.and_then(|value| value.parse().ok()).expect("the first bucket");
        Self { syncs, seconds, groups, writes, alone }
    }
}

/// Count and sum of a histogram whose buckets add up as they must.
fn histogram(text: &str, name: &str) -> (f64, f64) {
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse().ok());
    let value = |line: &str| -> f64 { value(line).unwrap_or_else(|| panic!("no number: {line}")) };
    let of = |part: &str| {
        let start = format!("{name}_{part}");
        text.lines().filter(move |line| line.starts_with(&start)).map(value).collect::<Vec<_>>()
    };
    let (buckets, count, sum) = (of("bucket{le="), of("count "), of("sum "));
    assert_eq!(text.matches(&format!("# TYPE {name} histogram\n")).count(), 1, "{text}");
    assert!(buckets.is_sorted() && buckets.len() > 10, "{name}: {buckets:?}");
    assert_eq!((count.len(), sum.len(), buckets.last()), (1, 1, count.first()), "{name}");
    (count[0], sum[0])
}
