//! What carries the API: gRPC-Web, CORS, compression, reflection, health, deadlines, admission, graceful stop.

use std::io::Write as _;
use std::time::Duration;

use kvstore::proto::v1::kv_service_client::KvServiceClient;
use reqwest::Client;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::node::{TestNode, eventually, get, put, reason, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_works_on_both_ports() {
    let node = TestNode::start().await;
    node.client().await.put(put("k", "1")).await.expect("stored");
    let mut client = KvServiceClient::connect(node.url("")).await.expect("it speaks HTTP/2");
    assert_eq!(text(client.get(get("k")).await.expect("there").into_inner().content), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_web_carries_answers_and_reasons() {
    let node = TestNode::with(&["kvstore.cors.origins=https://app.example"]).await;
    node.client().await.put(put("k", "1")).await.expect("stored");
    let http = Client::new();
    let call = |key: &'static str| {
        let mut frame = vec![0, 0, 0, 0, u8::try_from(key.len() + 2).expect("short"), 0x0a];
        frame.push(u8::try_from(key.len()).expect("short"));
        frame.extend_from_slice(key.as_bytes());
        http.post(node.url("/kvstore.v1.KvService/Get"))
            .header("content-type", "application/grpc-web+proto")
            .header("origin", "https://app.example")
            .body(frame)
    };
    let found = call("k").send().await.expect("an answer");
    assert_eq!(found.headers()["access-control-allow-origin"], "https://app.example");
    let body = found.bytes().await.expect("a body");
    assert!(body.windows(14).any(|window| window == b"grpc-status:0\r"), "{body:?}");
    let missing = call("none").send().await.expect("an answer");
    assert_eq!(missing.headers()["grpc-status"], "5");
    assert!(missing.headers().contains_key("grpc-status-details-bin"));
    let exposed =
        missing.headers()["access-control-expose-headers"].to_str().expect("text").to_owned();
    for name in ["grpc-status-details-bin", "kvstore-epoch"] {
        assert!(exposed.contains(name), "{exposed}");
    }
    let told = call("none").header("kvstore-epoch", "0").send().await.expect("an answer");
    assert_eq!(told.headers()["kvstore-epoch"], "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_origins_get_no_permission() {
    let node = TestNode::with(&["kvstore.cors.origins=https://app.example"]).await;
    let preflight = |origin: &'static str| {
        Client::new()
            .request(reqwest::Method::OPTIONS, node.url("/api/v1/kv/k"))
            .header("origin", origin)
            .header("access-control-request-method", "PUT")
            .header("access-control-request-headers", "content-type,x-grpc-web")
    };
    let allowed = preflight("https://app.example").send().await.expect("an answer");
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://app.example");
    let headers = allowed.headers()["access-control-allow-headers"].to_str().expect("text");
    assert!(headers.contains("kvstore-epoch"), "{headers}");
    let refused = preflight("https://evil.example").send().await.expect("an answer");
    assert!(!refused.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_requests_are_read_and_bombs_are_not() {
    let node = TestNode::start().await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut client =
            node.client().await.send_compressed(encoding).max_encoding_message_size(64 << 20);
        client.put(put("k", format!("\"{}\"", "x".repeat(100_000)))).await.expect("stored");
        let bomb = put("bomb", format!("\"{}\"", "x".repeat(20 << 20)));
        let refused = client.put(bomb).await.expect_err("it has 20 MiB");
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::InvalidArgument, "LIMIT_EXCEEDED")
        );
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(b"[1]").expect("into memory");
    let body = gzip.finish().expect("into memory");
    let request =
        Client::new().put(node.url("/api/v1/json/g")).header("content-encoding", "gzip").body(body);
    assert_eq!(request.send().await.expect("an answer").status(), 200);
    let document = reqwest::get(node.url("/api/v1/json/g")).await.expect("an answer");
    assert_eq!(document.headers()["etag"], "\"1\"");
    assert_eq!(document.text().await.expect("a body"), "[1]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_lists_the_services_in_both_versions() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient as V1;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::{v1, v1alpha};

    let node = TestNode::start().await;
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = V1::new(node.channel().await);
    let answers =
        client.server_reflection_info(tokio_stream::once(request)).await.expect("it answers");
    let answer = answers.into_inner().message().await.expect("it answers").expect("one answer");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for wanted in ["kvstore.v1.KvService", "kvstore.admin.v1.AdminService", "grpc.health.v1.Health"]
    {
        assert!(names.iter().any(|name| name == wanted), "{wanted} in {names:?}");
    }

    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                "kvstore.v1.KvService".to_owned(),
            ),
        ),
    };
    let channel = node.channel().await;
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let answers =
        client.server_reflection_info(tokio_stream::once(request)).await.expect("it answers");
    answers.into_inner().message().await.expect("it answers").expect("one answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_by_service() {
    let node = TestNode::start().await;
    let mut client = HealthClient::new(node.channel().await);
    for service in ["", "kvstore.v1.KvService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = client.check(request).await.expect("known").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let unknown =
        client.check(HealthCheckRequest { service: "x".to_owned() }).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openapi_describes_every_path_once() {
    let node = TestNode::start().await;
    let document: serde_json::Value = reqwest::get(node.url("/openapi.json"))
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    let mut ids = std::collections::HashSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let id = operation["operationId"].as_str().expect("an id").to_owned();
            assert!(ids.insert(id), "{method} {path} repeats its id");
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
        }
    }
    for path in [
        "/api/v1/kv/{key}",
        "/api/v1/keys/{key}",
        "/api/v1/json/{key}",
        "/api/v1/kv/scan",
        "/api/v1/ring",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_has_passed_is_told_by_the_api_itself() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    for _ in 0..20 {
        let mut request = tonic::Request::new(put("k", "1"));
        request.set_timeout(Duration::from_micros(1));
        if let Err(status) = client.put(request).await {
            // Its own answer has a reason; the transport's, where it was faster, has none and means "unknown".
            assert!(
                matches!(
                    status.code(),
                    Code::DeadlineExceeded | Code::ResourceExhausted | Code::Cancelled
                ),
                "{status:?}"
            );
        }
    }
    client.put(put("k", "2")).await.expect("the node is well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_allowed_are_refused_and_told_when_to_come_back() {
    let node = TestNode::with(&["kvstore.limits.in-flight-requests=1"]).await;
    // A request whose body does not come holds the one place.
    let (body, mut sender) = slow_body();
    let url = node.url("/api/v1/json/slow");
    let slow = tokio::spawn(async move { Client::new().put(url).body(body).send().await });
    sender.send(b"[1").await;
    a_request_runs(&node).await;
    let refused = reqwest::get(node.url("/api/v1/kv/k")).await.expect("an answer");
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let refused = node.client().await.get(get("k")).await.expect_err("full");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "OVERLOADED")
    );
    assert_eq!(reqwest::get(node.url("/actuator/health")).await.expect("an answer").status(), 200);
    sender.send(b"]").await;
    drop(sender);
    assert_eq!(slow.await.expect("no panic").expect("an answer").status(), 200);
    assert_eq!(reqwest::get(node.url("/api/v1/kv/slow")).await.expect("an answer").status(), 200);
}

/// Waits until the node works on one request.
async fn a_request_runs(node: &TestNode) {
    eventually("the request runs", || async {
        let metrics = reqwest::get(node.url("/actuator/prometheus")).await.expect("an answer");
        let metrics = metrics.text().await.expect("a body");
        metrics
            .lines()
            .any(|line| line.starts_with("kvstore_inflight_requests{") && line.ends_with(" 1"))
    })
    .await;
}

struct BodySender(tokio::sync::mpsc::Sender<Result<bytes::Bytes, std::io::Error>>);

impl BodySender {
    async fn send(&mut self, part: &'static [u8]) {
        self.0.send(Ok(bytes::Bytes::from_static(part))).await.expect("the request runs");
    }
}

fn slow_body() -> (reqwest::Body, BodySender) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    (
        reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)),
        BodySender(sender),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_calls_that_run() {
    let mut node = TestNode::start().await;
    let (body, mut sender) = slow_body();
    let url = node.url("/api/v1/json/late");
    let late = tokio::spawn(async move { Client::new().put(url).body(body).send().await });
    sender.send(b"[1").await;
    a_request_runs(&node).await;
    let address = node.url("");
    let stop = tokio::spawn(async move {
        node.stop().await;
        node
    });
    eventually("no new connections are taken", || {
        let address = address.clone();
        async move { reqwest::get(address).await.is_err() }
    })
    .await;
    assert!(!stop.is_finished(), "the stop waits");
    sender.send(b"]").await;
    drop(sender);
    assert_eq!(late.await.expect("no panic").expect("an answer").status(), 200);
    let mut node = stop.await.expect("it stops");
    node.open().await;
    assert_eq!(reqwest::get(node.url("/api/v1/json/late")).await.expect("an answer").status(), 200);
}

/// The message that ARCHITECTURE.md shows byte for byte.
#[test]
fn a_put_request_has_the_bytes_that_the_architecture_shows() {
    use prost::Message as _;
    let request = put("user/1", r#"{"name": "John"}"#);
    assert_eq!(request.encode_to_vec(), b"\x0a\x06user/1\x12\x10{\"name\": \"John\"}");
}
