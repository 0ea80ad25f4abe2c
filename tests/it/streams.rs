//! `Scan`: streams of any length, and callers that leave.

use kvstore::proto::v1::{BatchPutRequest, ScanRequest, scan_response};
use tonic::Code;

use crate::node::{PATIENCE, TestNode, eventually, put, reason};

async fn filled(settings: &[&str], keys: usize) -> TestNode {
    let node = TestNode::with(settings).await;
    let mut client = node.client().await;
    let all: Vec<usize> = (0..keys).collect();
    for part in all.chunks(5_000) {
        let entries =
            part.iter().map(|number| (format!("k/{number:06}"), number.to_string())).collect();
        client
            .batch_put(BatchPutRequest { entries, ..BatchPutRequest::default() })
            .await
            .expect("stored");
    }
    node
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_gives_every_key_in_order_in_both_directions() {
    let node = filled(&[], 12_345).await;
    let mut client = node.client().await;
    for reverse in [false, true] {
        let request =
            ScanRequest { prefix: Some("k/".to_owned()), reverse, ..ScanRequest::default() };
        let mut items = client.scan(request).await.expect("it begins").into_inner();
        let mut count = 0;
        while let Some(item) = items.message().await.expect("it goes on") {
            let number = if reverse { 12_344 - count } else { count };
            assert_eq!(item.key, format!("k/{number:06}"));
            assert_eq!(item.content, Some(scan_response::Content::Value(number.to_string())));
            count += 1;
        }
        assert_eq!(count, 12_345);
    }
    let limited = ScanRequest { limit: Some(1_001), keys_only: true, ..ScanRequest::default() };
    let mut items = client.scan(limited).await.expect("it begins").into_inner();
    let mut count = 0;
    while let Some(item) = items.message().await.expect("it goes on") {
        assert_eq!(item.content, None);
        count += 1;
    }
    assert_eq!(count, 1_001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_over_rest_is_an_array_lines_or_events() {
    let node = filled(&[], 2_500).await;
    let http = reqwest::Client::new();
    let fetch = |accept: &'static str| {
        let request = http.get(node.url("/api/v1/kv/scan?prefix=k/")).header("accept", accept);
        async move { request.send().await.expect("an answer").text().await.expect("all of it") }
    };
    let array: Vec<serde_json::Value> =
        serde_json::from_str(&fetch("application/json").await).expect("an array");
    assert_eq!(array.len(), 2_500);
    assert_eq!(array[7]["key"], "k/000007");
    let lines = fetch("application/x-ndjson").await;
    assert_eq!(lines.lines().filter(|line| !line.is_empty()).count(), 2_500);
    let events = fetch("text/event-stream").await;
    assert_eq!(events.lines().filter(|line| line.starts_with("data:")).count(), 2_500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_ends_its_scan_and_leaks_nothing() {
    let node = filled(&["kvstore.limits.in-flight-requests=4"], 20_000).await;
    let mut client = node.client().await;
    for _ in 0..50 {
        let mut items = client.scan(ScanRequest::default()).await.expect("it begins").into_inner();
        items.message().await.expect("it goes on").expect("a first item");
    }
    let url = node.url("/actuator/metrics/kvstore_inflight_requests");
    eventually("nothing is in flight", || {
        let url = url.clone();
        async move {
            let body: serde_json::Value =
                reqwest::get(url).await.expect("answer").json().await.expect("JSON");
            body["measurements"][0]["value"] == 0.0
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_ends_at_its_deadline() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    // More than the buffers of HTTP/2 hold, so that the scan still runs when its deadline passes.
    let value = format!("\"{}\"", "x".repeat(100_000));
    for number in 0..300 {
        client.put(put(format!("k/{number}"), value.as_str())).await.expect("stored");
    }
    let mut request = tonic::Request::new(ScanRequest::default());
    request.set_timeout(std::time::Duration::from_millis(300));
    let mut items = client.scan(request).await.expect("it begins").into_inner();
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            match items.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    });
    let status = ended.await.expect("in time").expect("it is cut off");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
    );
}
