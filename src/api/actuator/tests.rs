//! Each path under `/actuator`: status, media type and exact body.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use super::*;
use crate::telemetry::{ComponentHealth, Op, Outcome};
use crate::types::Limits;
use crate::util::time::{ManualClock, Timestamp};

const V3: &str = "application/vnd.spring-boot.actuator.v3+json";

/// A node with an actuator.
struct Node {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    router: Router,
}

/// What came back.
#[derive(Debug)]
struct Got {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("the body is JSON")
    }
}

impl Node {
    /// A node that accepts requests at 2026-11-24T02:50:03.123Z.
    fn new() -> Self {
        let (metrics, health) = (Arc::new(Metrics::new()), Arc::new(Health::new()));
        health.set_accepting(true);
        let info = Info {
            node: "n1".to_owned(),
            host: "10.0.0.1".to_owned(),
            engine: "lsm".to_owned(),
            shards: 16,
            limits: Limits::default(),
        };
        let clock = ManualClock::new(Timestamp::from_millis(1_795_488_603_123));
        let router = with_clock(Arc::clone(&metrics), Arc::clone(&health), info, Arc::new(clock));
        Self { metrics, health, router }
    }

    async fn send(&self, request: http::request::Builder) -> Got {
        let request = request.body(Body::empty()).expect("a valid request");
        let response =
            self.router.clone().oneshot(request).await.expect("the router is infallible");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body in memory").to_bytes();
        let body = String::from_utf8(body.to_vec()).expect("the body is text");
        Got { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Got {
        self.send(http::Request::get(path)).await
    }

    /// What `path` answers when it is declared as Spring's actuator declares it.
    async fn answers(&self, path: &str, status: u16, body: &str) {
        let got = self.get(path).await;
        assert_eq!((got.status, got.body.as_str()), (status, body), "{path}");
        assert_eq!(got.header("content-type"), V3, "{path}");
    }

    async fn refuses(&self, path: &str, status: u16, error: &str, message: &str) {
        let got = self.get(path).await;
        let shown = path.split('?').next();
        let expected = json!({
            "timestamp": "2026-11-24T02:50:03.123+00:00",
            "status": status, "error": error, "message": message, "path": shown,
        });
        assert_eq!((got.status, got.json()), (status, expected), "{path}");
        assert_eq!(got.header("content-type"), "application/json", "{path}");
    }
}

#[tokio::test]
async fn links_begin_where_the_caller_found_the_server() {
    let node = Node::new();
    let got = node.send(http::Request::get("/actuator").header("host", "kv.example:8080")).await;
    assert_eq!((got.status, got.header("content-type")), (200, V3));
    let link = |path: &str, templated: bool| json!({"href": format!("http://kv.example:8080/actuator{path}"), "templated": templated});
    let expected = json!({"_links": {
        "self": link("", false),
        "health": link("/health", false),
        "health-path": link("/health/{*path}", true),
        "info": link("/info", false),
        "metrics": link("/metrics", false),
        "metrics-requiredMetricName": link("/metrics/{requiredMetricName}", true),
        "prometheus": link("/prometheus", false),
    }});
    assert_eq!(got.json(), expected);
    for (request, href) in [
        // HTTP/2 has no Host header but an absolute address.
        (http::Request::get("https://kv.example/actuator"), "https://kv.example/actuator"),
        // HTTP/1.0 may have neither.
        (http::Request::get("/actuator"), "/actuator"),
        (http::Request::get("/actuator").header("host", "a\"b"), "http://a\"b/actuator"),
    ] {
        assert_eq!(node.send(request).await.json()["_links"]["self"]["href"], href);
    }
}

#[tokio::test]
async fn health_lists_components_and_takes_the_worst() {
    let node = Node::new();
    let whole = r#"{"status":"UP","components":{"livenessState":{"status":"UP"},"ping":{"status":"UP"},"readinessState":{"status":"UP"}},"groups":["liveness","readiness"]}"#;
    node.answers("/actuator/health", 200, whole).await;

    let storage =
        || ComponentHealth::new(Status::Down).detail("engine", "lsm").detail("writable", false);
    node.health.register("storage", Box::new(storage));
    let leader = || ComponentHealth::new(Status::Up).detail("role", "leader").detail("term", 5);
    let shards =
        move || ComponentHealth::composite(BTreeMap::from([("shard-0".to_owned(), leader())]));
    node.health.register("raft", Box::new(shards));
    let whole = r#"{"status":"DOWN","components":{"livenessState":{"status":"UP"},"ping":{"status":"UP"},"raft":{"status":"UP","components":{"shard-0":{"status":"UP","details":{"role":"leader","term":5}}}},"readinessState":{"status":"UP"},"storage":{"status":"DOWN","details":{"engine":"lsm","writable":false}}},"groups":["liveness","readiness"]}"#;
    node.answers("/actuator/health", 503, whole).await;
    let storage = r#"{"status":"DOWN","details":{"engine":"lsm","writable":false}}"#;
    node.answers("/actuator/health/storage", 503, storage).await;
    let raft = r#"{"status":"UP","components":{"shard-0":{"status":"UP","details":{"role":"leader","term":5}}}}"#;
    node.answers("/actuator/health/raft", 200, raft).await;
    let shard = r#"{"status":"UP","details":{"role":"leader","term":5}}"#;
    node.answers("/actuator/health/raft/shard-0", 200, shard).await;
    node.answers("/actuator/health/%70ing", 200, r#"{"status":"UP"}"#).await;
    let message = "there is no such component; GET /actuator/health lists them";
    for path in ["nothing", "raft/shard-1", "raft/shard-0/more", "ping/", "", "liveness/ping"] {
        node.refuses(&format!("/actuator/health/{path}"), 404, "Not Found", message).await;
    }
}

#[tokio::test]
async fn probes_tell_a_node_that_drains_from_one_that_is_broken() {
    let node = Node::new();
    let (live, ready) = ("/actuator/health/liveness", "/actuator/health/readiness");
    let (up, out) = (r#"{"status":"UP"}"#, r#"{"status":"OUT_OF_SERVICE"}"#);
    node.answers(live, 200, up).await;
    node.answers(ready, 200, up).await;
    node.health.set_accepting(false);
    node.answers(live, 200, up).await;
    node.answers(ready, 503, out).await;
    node.health.set_broken();
    node.answers(live, 503, r#"{"status":"DOWN"}"#).await;
    node.answers(ready, 503, out).await;
}

#[tokio::test]
async fn info_tells_build_node_and_limits() {
    let node = Node::new();
    let got = node.get("/actuator/info").await;
    assert_eq!((got.status, got.header("content-type")), (200, V3));
    let info = got.json();
    let fact = |path: &str| info.pointer(path).unwrap_or_else(|| panic!("no {path} in {info}"));
    assert_eq!(fact("/build/version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (fact("/build/artifact"), fact("/build/name")),
        (&"kvstore".into(), &"kvstore".into())
    );
    assert_eq!(*fact("/process/pid"), std::process::id());
    assert_eq!(fact("/os/name"), "Linux");
    assert!(fact("/rust/target").as_str().is_some_and(|target| target.contains('-')));
    let expected = json!({"id": "n1", "host": "10.0.0.1", "engine": "lsm", "shards": 16});
    assert_eq!(*fact("/node"), expected);
    let expected = json!({
        "keyBytes": 4096, "valueBytes": 1_048_576, "batchEntries": 10_000, "batchBytes": 8_388_608,
        "pageItems": 10_000, "pageBytes": 4_194_304, "requestBytes": 16_777_216,
    });
    assert_eq!(*fact("/limits"), expected);
    // What could not be learned at build time is left out.
    assert!(!got.body.contains("\"unknown\""), "{}", got.body);
}

#[tokio::test]
async fn metrics_are_listed_sorted() {
    let node = Node::new();
    let got = node.get("/actuator/metrics").await;
    assert_eq!((got.status, got.header("content-type")), (200, V3));
    let names = got.json()["names"].as_array().expect("a list").clone();
    let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
    assert!(names.is_sorted());
    for promised in
        ["kvstore_operations_total", "kvstore_memory_usage_bytes", "kvstore_disk_usage_bytes"]
    {
        assert!(names.contains(&promised), "{promised}");
    }
}

#[tokio::test]
async fn a_metric_is_summed_over_the_tags_that_match() {
    let node = Node::new();
    for _ in 0..3 {
        node.metrics.operation(Op::Get).record(Outcome::Ok, Duration::from_micros(10));
    }
    node.metrics.operation(Op::Put).record(Outcome::Error, Duration::from_micros(100));
    let name = "/actuator/metrics/kvstore_operations_total";
    let got = node.get(&format!("{name}?tag=outcome:ok")).await;
    let expected = json!({
        "name": "kvstore_operations_total",
        "description": "Operations by kind and outcome",
        "baseUnit": "operations",
        "measurements": [{"statistic": "COUNT", "value": 3.0}],
        "availableTags": [{"tag": "op", "values": [
            "batch_get", "batch_put", "delete", "get", "put", "range", "scan", "stats",
        ]}],
    });
    assert_eq!((got.status, got.header("content-type"), got.json()), (200, V3, expected));

    for (query, count) in
        [("", 4.0), ("?tag=op:put", 1.0), ("?tag=op:get&tag=outcome%3Aok", 3.0), ("?other=1", 4.0)]
    {
        let got = node.get(&format!("{name}{query}")).await.json();
        assert_eq!(got["measurements"], json!([{"statistic": "COUNT", "value": count}]), "{query}");
    }
    let got = node.get("/actuator/metrics/kvstore_operation_duration_seconds?tag=op:put").await;
    let expected = json!({
        "name": "kvstore_operation_duration_seconds",
        "description": "Time of an operation on this node",
        "baseUnit": "seconds",
        "measurements": [
            {"statistic": "COUNT", "value": 1.0},
            {"statistic": "TOTAL_TIME", "value": 0.0001},
            {"statistic": "MAX", "value": 0.0001},
        ],
        "availableTags": [],
    });
    assert_eq!(got.json(), expected);
    node.metrics.memory_usage("cache").set(42);
    let got = node.get("/actuator/metrics/kvstore_memory_usage_bytes?tag=kind:cache").await.json();
    assert_eq!(got["measurements"], json!([{"statistic": "VALUE", "value": 42.0}]));
    let got = node.get("/actuator/metrics/kvstore_wal_group_size").await.json();
    assert_eq!(
        (&got["measurements"][1]["statistic"], got.get("baseUnit")),
        (&"TOTAL".into(), None)
    );
}

#[tokio::test]
async fn unknown_metrics_and_tags_are_not_found_and_malformed_tags_are_refused() {
    let node = Node::new();
    let message = "there is no such metric; GET /actuator/metrics lists them";
    node.refuses("/actuator/metrics/nothing", 404, "Not Found", message).await;
    node.refuses("/actuator/metrics/", 404, "Not Found", message).await;
    let name = "/actuator/metrics/kvstore_operations_total";
    let message = "no series has these tags; without tags the answer lists them";
    for tags in ["tag=op:fly", "tag=colour:red", "tag=op:", "tag=:", "tag=op:get&tag=op:put"] {
        node.refuses(&format!("{name}?{tags}"), 404, "Not Found", message).await;
    }
    let message = "each tag parameter must be 'key:value', but one was \"op\"";
    node.refuses(&format!("{name}?tag=op"), 400, "Bad Request", message).await;
}

#[tokio::test]
async fn prometheus_reads_text_and_open_metrics() {
    let node = Node::new();
    node.metrics.rejected("OVERLOADED");
    let path = "/actuator/prometheus?includedNames=kvstore_rejected_total";
    let got = node.get(path).await;
    assert_eq!(got.header("content-type"), "text/plain;version=0.0.4;charset=utf-8");
    let text = "# HELP kvstore_rejected_total Requests refused, by reason\n\
                # TYPE kvstore_rejected_total counter\n\
                kvstore_rejected_total{reason=\"OVERLOADED\"} 1\n";
    assert_eq!((got.status, got.body.as_str()), (200, text));

    // What Prometheus 3 sends, but for protobuf.
    let accept = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                  text/plain;version=0.0.4;q=0.4,*/*;q=0.3";
    let got = node.send(http::Request::get(path).header("accept", accept)).await;
    assert_eq!(
        got.header("content-type"),
        "application/openmetrics-text;version=1.0.0;charset=utf-8"
    );
    let text = "# TYPE kvstore_rejected counter\n# HELP kvstore_rejected Requests refused, by reason\n\
                kvstore_rejected_total{reason=\"OVERLOADED\"} 1\n# EOF\n";
    assert_eq!((got.status, got.body.as_str()), (200, text));
}

#[tokio::test]
async fn included_names_choose_families() {
    let node = Node::new();
    let all = node.get("/actuator/prometheus").await.body;
    assert!(all.contains("\nkvstore_build_info{") && all.contains("\nprocess_open_fds "), "{all}");
    for (query, families) in [
        ("includedNames=", all.matches("# TYPE").count()),
        ("includedNames=nothing", 0),
        ("includedNames=kvstore_build_info,process_open_fds", 2),
        ("includedNames=kvstore_build_info&includedNames=process_open_fds", 2),
        ("includedNames=kvstore_rejected", 0), // no series yet
        ("includedNames=kvstore_operations", 1),
        ("includedNames=kvstore_wal_group_size_bucket", 1),
    ] {
        let got = node.get(&format!("/actuator/prometheus?{query}")).await;
        let found = got.body.matches("# TYPE").count();
        assert_eq!((got.status, found), (200, families), "{query}");
    }
}

#[tokio::test]
async fn json_is_declared_as_the_caller_accepts_it() {
    let node = Node::new();
    let v2 = "application/vnd.spring-boot.actuator.v2+json";
    for (accept, expected) in [
        ("*/*", V3),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        (V3, V3),
        (v2, v2),
        ("text/html,application/xhtml+xml,*/*;q=0.8", V3),
        ("text/html", V3),
    ] {
        for path in
            ["/actuator", "/actuator/health/liveness", "/actuator/info", "/actuator/metrics"]
        {
            let got = node.send(http::Request::get(path).header("accept", accept)).await;
            assert_eq!(
                (got.status, got.header("content-type")),
                (200, expected),
                "{path} {accept}"
            );
        }
    }
}

#[tokio::test]
async fn unknown_paths_are_not_found_in_the_shape_of_spring() {
    let node = Node::new();
    for path in [
        "/actuator/",
        "/actuator/nothing",
        "/actuator//health",
        "/actuator/healthy",
        "/actuator/health%2Fping",
        "/actuator/info/more",
        "/actuator/info/",
        "/actuator/metrics/a/b",
        "/actuator/prometheus/",
        "/actuator/%ff",
        "/actuator/%",
        "/actuator/HEALTH",
    ] {
        node.refuses(path, 404, "Not Found", UNKNOWN_PATH).await;
    }
}

#[tokio::test]
async fn other_methods_are_refused_with_those_that_are_allowed() {
    let node = Node::new();
    for path in ["/actuator", "/actuator/health/ping", "/actuator/info", "/actuator/prometheus"] {
        let got = node.send(http::Request::post(path)).await;
        assert_eq!((got.status, got.header("allow")), (405, "GET,HEAD"), "{path}");
        let expected = json!({
            "timestamp": "2026-11-24T02:50:03.123+00:00", "status": 405, "error": "Method Not Allowed",
            "message": "POST is not supported here; this is read only", "path": path,
        });
        assert_eq!(got.json(), expected);
    }
    assert_eq!(node.send(http::Request::delete("/actuator/nothing")).await.status, 404);
}

#[tokio::test]
async fn head_answers_as_get_does_without_the_body() {
    let node = Node::new();
    node.health.register("storage", Box::new(|| ComponentHealth::new(Status::Down)));
    for path in ["/actuator", "/actuator/health", "/actuator/info", "/actuator/nothing"] {
        let (get, head) = (node.get(path).await, node.send(http::Request::head(path)).await);
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.header("content-length"), get.body.len().to_string(), "{path}");
    }
}

#[tokio::test]
async fn a_check_that_fails_is_an_error_and_later_requests_are_answered() {
    let node = Node::new();
    node.health.register("bad", Box::new(|| panic!("a defect")));
    let message = "a health check or a metric failed; the node's log tells more";
    for _ in 0..2 * AT_A_TIME {
        node.refuses("/actuator/health", 500, "Internal Server Error", message).await;
    }
    node.answers("/actuator/health/readiness", 200, r#"{"status":"UP"}"#).await;
}

#[tokio::test]
async fn checks_that_hang_do_not_hold_up_liveness() {
    let node = Arc::new(Node::new());
    let hanging = Arc::new(Barrier::new(AT_A_TIME + 1));
    let seen = Arc::clone(&hanging);
    let check = move || {
        // Once all of them are in, and once more to be let go.
        seen.wait();
        seen.wait();
        ComponentHealth::new(Status::Up)
    };
    node.health.register("disk", Box::new(check));
    let asking: Vec<_> = (0..AT_A_TIME)
        .map(|_| {
            let node = Arc::clone(&node);
            tokio::spawn(async move { node.get("/actuator/health").await.status })
        })
        .collect();
    let all_in = Arc::clone(&hanging);
    tokio::task::spawn_blocking(move || all_in.wait()).await.expect("it waits for the checks");
    node.answers("/actuator/health/liveness", 200, r#"{"status":"UP"}"#).await;
    tokio::task::spawn_blocking(move || hanging.wait()).await.expect("it lets the checks go");
    for asked in asking {
        assert_eq!(asked.await.expect("it was answered"), 200);
    }
}
