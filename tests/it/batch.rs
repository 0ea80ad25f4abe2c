//! `kvstore batch`, and the way from `scan` back to it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kvstore::proto::v1::scan_response::Content;
use kvstore::proto::v1::{PutRequest, ScanRequest, put_request};

use crate::cli::kvstore;
use crate::node::{TestNode, put};

/// Everything that a node stores.
async fn stored(node: &TestNode) -> BTreeMap<String, Content> {
    let mut stream =
        node.client().await.scan(ScanRequest::default()).await.expect("open").into_inner();
    let mut all = BTreeMap::new();
    while let Some(item) = stream.message().await.expect("an item") {
        all.insert(item.key, item.content.expect("a value"));
    }
    all
}

fn text(content: &Content) -> &str {
    match content {
        Content::Value(text) => text,
        Content::Raw(_) => panic!("not a text"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_from_a_pipe_are_stored_as_they_are_written() {
    let node = TestNode::start().await;
    let lines = r#"{"key": "a", "value": {"x": 1.0,  "y": [1e2]} }

        {"ttl": 100, "key": "b", "text": "[1,\n2]"}
        {"key": "c", "raw": "AP8="}
        {"key": "d", "value": null}"#;
    let ended = kvstore(&node, &["batch", "--ttl", "1h"], lines.as_bytes());
    assert_eq!(ended.done(), "stored 4 entries\n");
    let all = stored(&node).await;
    assert_eq!(text(&all["a"]), r#"{"x": 1.0,  "y": [1e2]}"#);
    assert_eq!(text(&all["b"]), "[1,\n2]");
    assert_eq!(all["c"], Content::Raw(vec![0, 255].into()));
    assert_eq!(text(&all["d"]), "null");
    let ttl = |key| kvstore(&node, &["get", key, "-o", "json"], b"").json()["ttl"].as_u64();
    assert_eq!((ttl("a"), ttl("b"), ttl("c")), (Some(3_600), Some(100), Some(3_600)));
    assert_eq!(kvstore(&node, &["batch"], b"").done(), "stored 0 entries\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_line_is_named_after_everything_before_it_is_stored() {
    let node = TestNode::start().await;
    let mut lines = String::new();
    for key in 0..2_500 {
        writeln!(lines, r#"{{"key":"k{key}","value":{key}}}"#).expect("a string");
    }
    lines.push_str("{\"key\":\"bad\",\"value\":{]}\n{\"key\":\"after\",\"value\":1}\n");
    let said = kvstore(&node, &["batch", "-"], lines.as_bytes()).failed(1);
    assert_eq!(
        said,
        "kvstore: standard input:2501: column 23: key must be a string; 2500 entries stored before it\n"
    );
    let all = stored(&node).await;
    assert_eq!(all.len(), 2_500);
    assert!(!all.contains_key("after"));

    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("lines.ndjson");
    std::fs::write(&file, b"{\"key\":\"one\",\"value\":1}\n{\"key\":\"\xff\"}\n")
        .expect("writable");
    let name = file.display().to_string();
    let said = kvstore(&node, &["batch", &name], b"").failed(1);
    let place =
        format!("kvstore: {name}:2: column 9: the line is not UTF-8; 1 entry stored before it");
    assert!(said.starts_with(&place), "{said}");
    let said = kvstore(&node, &["batch", "/no/such/file"], b"").failed(1);
    assert!(said.contains("cannot read /no/such/file"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_the_node_refuses_is_named_with_its_line() {
    let node = TestNode::with(&["kvstore.limits.value-size=100B"]).await;
    let long = "x".repeat(100);
    let lines =
        format!("{{\"key\":\"a\",\"value\":1}}\n{{\"key\":\"long\",\"value\":\"{long}\"}}\n");
    let said = kvstore(&node, &["batch"], lines.as_bytes()).failed(1);
    assert!(
        said.starts_with("kvstore: LIMIT_EXCEEDED: standard input:2: entry \"long\": "),
        "{said}"
    );
    assert!(said.contains("kvstore.limits.value-size"), "{said}");
    assert!(said.ends_with("0 entries stored, all before line 1 among them\n"), "{said}");
    assert_eq!(stored(&node).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_five_thousand_lines_are_stored_also_where_batches_must_be_small() {
    let mut lines = String::new();
    for key in 0..25_000 {
        writeln!(lines, r#"{{"key":"key/{key:05}","value":{{"number":{key}}}}}"#)
            .expect("a string");
    }
    let roomy = TestNode::start().await;
    assert_eq!(kvstore(&roomy, &["batch"], lines.as_bytes()).done(), "stored 25000 entries\n");
    let all = stored(&roomy).await;
    assert_eq!(all.len(), 25_000);
    assert_eq!(text(&all["key/24999"]), r#"{"number":24999}"#);

    let first: String = lines.lines().take(3_000).collect::<Vec<_>>().join("\n");
    for setting in ["kvstore.limits.batch-entries=70", "kvstore.limits.batch-size=2KB"] {
        let narrow = TestNode::with(&[setting]).await;
        let ended = kvstore(&narrow, &["batch"], first.as_bytes());
        assert_eq!(ended.done(), "stored 3000 entries\n", "{setting}");
        assert_eq!(stored(&narrow).await.len(), 3_000, "{setting}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_key_on_several_lines_the_last_one_wins() {
    let node = TestNode::start().await;
    let mut lines = String::new();
    // Within one batch, and over batches that are on their way together.
    for line in 0..6_000 {
        writeln!(lines, r#"{{"key":"k{}","value":{line}}}"#, line % 1_500).expect("a string");
    }
    lines.push_str("{\"key\":\"k0\",\"raw\":\"AA==\"}\n{\"key\":\"k0\",\"value\":\"last\"}\n");
    assert_eq!(kvstore(&node, &["batch"], lines.as_bytes()).done(), "stored 6002 entries\n");
    let all = stored(&node).await;
    assert_eq!(all.len(), 1_500);
    assert_eq!(text(&all["k0"]), "\"last\"");
    for key in 1..1_500 {
        assert_eq!(text(&all[&format!("k{key}")]), (4_500 + key).to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_scan_prints_batch_stores_again_byte_for_byte() {
    let (from, to) = (TestNode::start().await, TestNode::start().await);
    let mut client = from.client().await;
    let texts = [
        "1",
        " 1",
        "1\n",
        "\t{\r\n}",
        "\"\"",
        "null",
        "-0.0",
        "1e400",
        "{\"a\":1,\"a\":2}",
        "[ 1 , 2 ]",
        "\"\\u00e9\\ud83d\\ude00\\ud800\"",
        "\"é\u{2028}\u{9b}\u{7f}\"",
        "123456789012345678901234567890.10",
    ];
    for (number, text) in texts.iter().enumerate() {
        client.put(put(format!("text/{number}"), *text)).await.expect("stored");
    }
    for key in ["\u{0}\u{1}\n\"\\", "é\u{10ffff}", "{\"key\":1}", " "] {
        client.put(put(key, "1")).await.expect("stored");
    }
    client.put(put("long", format!("\"{}\"", "x".repeat(1_000_000)))).await.expect("stored");
    for (number, raw) in [&b""[..], b"\n", b"\x00\xff"].into_iter().enumerate() {
        let content = Some(put_request::Content::Raw(raw.to_vec().into()));
        let request = PutRequest { content, ttl: Some(500), ..put(format!("raw/{number}"), "") };
        client.put(request).await.expect("stored");
    }
    let dump = kvstore(&from, &["scan"], b"");
    assert_eq!((dump.code, dump.err.as_str()), (0, ""));
    kvstore(&to, &["batch"], &dump.out).done();
    let (before, after) = (stored(&from).await, stored(&to).await);
    assert_eq!(before.len(), texts.len() + 8);
    assert_eq!(before, after);
    let ttl = kvstore(&to, &["get", "raw/0", "-o", "json"], b"").json()["ttl"].as_u64();
    assert!(ttl.is_some_and(|ttl| (450..=500).contains(&ttl)), "{ttl:?}");
    let keys_only = kvstore(&from, &["scan", "--keys-only", "--limit", "1"], b"");
    let refused = kvstore(&to, &["batch"], &keys_only.out).failed(1);
    assert!(refused.contains("there is no value"), "{refused}");
}
