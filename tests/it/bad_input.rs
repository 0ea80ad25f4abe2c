//! Bad input, over gRPC and REST alike: the same table of cases, each with the code and reason that both must give. Afterwards
//! nothing is stored and the node is well.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use kvstore::proto::v1::{
    BatchGetRequest, BatchPutRequest, DeleteRequest, GetRequest, PutRequest, RangeRequest,
    ScanRequest, StatsRequest, put_request,
};
use reqwest::{Client, Method};
use tonic::Code;

use crate::node::{TestNode, get, put, reason};

/// A request over gRPC.
enum Grpc {
    Put(PutRequest),
    Get(GetRequest),
    Delete(DeleteRequest),
    BatchPut(BatchPutRequest),
    BatchGet(BatchGetRequest),
    Range(RangeRequest),
    Scan(ScanRequest),
    /// What gRPC cannot express: the type system of protobuf refuses it on the client.
    Impossible,
}

/// The same request over REST: method, path, body.
type Rest = (Method, String, String);

/// What REST cannot express.
fn no_rest() -> Option<Rest> {
    None
}

struct Case {
    name: &'static str,
    grpc: Grpc,
    rest: Option<Rest>,
    code: Code,
    reason: &'static str,
}

fn case(name: &'static str, grpc: Grpc, rest: Option<Rest>, reason: &'static str) -> Case {
    Case { name, grpc, rest, code: Code::InvalidArgument, reason }
}

#[expect(clippy::unnecessary_wraps, reason = "the table has cases without REST")]
fn rest(method: Method, path: impl Into<String>, body: impl Into<String>) -> Option<Rest> {
    Some((method, path.into(), body.into()))
}

fn entries(entries: impl IntoIterator<Item = (String, String)>) -> HashMap<String, String> {
    entries.into_iter().collect()
}

fn cases() -> Vec<Case> {
    let mut cases = keys();
    cases.extend(values());
    cases.extend(batches());
    cases.extend(ranges());
    cases
}

fn keys() -> Vec<Case> {
    let long = "k".repeat(4097);
    let delete =
        |key: &str| Grpc::Delete(DeleteRequest { key: key.to_owned(), ..DeleteRequest::default() });
    let body = r#"{"value": "1"}"#;
    vec![
        case(
            "put of an empty key",
            Grpc::Put(put("", "1")),
            rest(Method::PUT, "/api/v1/kv/", body),
            "INVALID_KEY",
        ),
        case(
            "get of an empty key",
            Grpc::Get(get("")),
            rest(Method::GET, "/api/v1/kv/", ""),
            "INVALID_KEY",
        ),
        case(
            "delete of an empty key",
            delete(""),
            rest(Method::DELETE, "/api/v1/keys/", ""),
            "INVALID_KEY",
        ),
        case(
            "put of a key of 4097 bytes",
            Grpc::Put(put(&long, "1")),
            rest(Method::PUT, format!("/api/v1/kv/{long}"), body),
            "LIMIT_EXCEEDED",
        ),
        case(
            "get of a key of 4097 bytes",
            Grpc::Get(get(&long)),
            rest(Method::GET, format!("/api/v1/json/{long}"), ""),
            "LIMIT_EXCEEDED",
        ),
        case(
            "a key that is not UTF-8",
            Grpc::Impossible,
            rest(Method::PUT, "/api/v1/kv/%ff%fe", body),
            "INVALID_KEY",
        ),
        case(
            "malformed percent-encoding",
            Grpc::Impossible,
            rest(Method::PUT, "/api/v1/kv/a%zz", body),
            "INVALID_KEY",
        ),
        case(
            "cut percent-encoding",
            Grpc::Impossible,
            rest(Method::GET, "/api/v1/kv/a%2", ""),
            "INVALID_KEY",
        ),
        case(
            "a request id of 65 bytes",
            Grpc::Put(PutRequest { request_id: Some("r".repeat(65)), ..put("bad", "1") }),
            rest(
                Method::PUT,
                "/api/v1/kv/bad",
                format!(r#"{{"value":"1","requestId":"{}"}}"#, "r".repeat(65)),
            ),
            "INVALID_REQUEST_ID",
        ),
        case(
            "an empty request id",
            Grpc::Put(PutRequest { request_id: Some(String::new()), ..put("bad", "1") }),
            rest(Method::PUT, "/api/v1/json/bad?requestId=", "1"),
            "INVALID_REQUEST_ID",
        ),
        case(
            "a consistency that does not exist",
            Grpc::Get(GetRequest { consistency: 9, ..get("bad") }),
            rest(Method::GET, "/api/v1/kv/bad?consistency=SOMETIMES", ""),
            "INVALID_CONSISTENCY",
        ),
        case(
            "a lease read that is not switched on",
            Grpc::Get(GetRequest { consistency: 3, ..get("bad") }),
            rest(Method::GET, "/api/v1/kv/bad?consistency=CONSISTENCY_LEASE", ""),
            "INVALID_CONSISTENCY",
        ),
    ]
}

fn values() -> Vec<Case> {
    let at = "/api/v1/kv/bad";
    let json = |body: &str| rest(Method::PUT, at, body);
    let ttl = |ttl: u32| Grpc::Put(PutRequest { ttl: Some(ttl), ..put("bad", "1") });
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    vec![
        case(
            "not JSON",
            Grpc::Put(put("bad", "{oops")),
            json(r#"{"value": "{oops"}"#),
            "INVALID_JSON",
        ),
        case("no text at all", Grpc::Put(put("bad", "")), json(r#"{"value": ""}"#), "INVALID_JSON"),
        case(
            "two documents",
            Grpc::Put(put("bad", "1 2")),
            rest(Method::PUT, "/api/v1/json/bad", "1 2"),
            "INVALID_JSON",
        ),
        case(
            "too deep",
            Grpc::Put(put("bad", &deep)),
            rest(Method::PUT, "/api/v1/json/bad", deep),
            "INVALID_JSON",
        ),
        case(
            "no value",
            Grpc::Put(PutRequest { key: "bad".to_owned(), ..PutRequest::default() }),
            json("{}"),
            "INVALID_VALUE",
        ),
        case(
            "a value of more than 1 MiB",
            Grpc::Put(put("bad", &large)),
            rest(Method::PUT, "/api/v1/json/bad", large),
            "LIMIT_EXCEEDED",
        ),
        case(
            "raw bytes of more than 1 MiB",
            Grpc::Put(PutRequest {
                content: Some(put_request::Content::Raw(vec![0; (1 << 20) + 1].into())),
                ..put("bad", "")
            }),
            no_rest(),
            "LIMIT_EXCEEDED",
        ),
        case("ttl 0", ttl(0), json(r#"{"value": "1", "ttl": 0}"#), "INVALID_TTL"),
        case("ttl negative", Grpc::Impossible, json(r#"{"value": "1", "ttl": -1}"#), "INVALID_TTL"),
        case(
            "ttl fractional",
            Grpc::Impossible,
            json(r#"{"value": "1", "ttl": 1.5}"#),
            "INVALID_TTL",
        ),
        case(
            "ttl a word",
            Grpc::Impossible,
            rest(Method::PUT, "/api/v1/json/bad?ttl=soon", "1"),
            "INVALID_TTL",
        ),
        case("value an object", Grpc::Impossible, json(r#"{"value": {"a": 1}}"#), "INVALID_JSON"),
        case(
            "value and raw",
            Grpc::Impossible,
            json(r#"{"value": "1", "raw": "AA=="}"#),
            "INVALID_VALUE",
        ),
        case("raw not base64", Grpc::Impossible, json(r#"{"raw": "***"}"#), "INVALID_VALUE"),
        case(
            "an unknown field",
            Grpc::Impossible,
            json(r#"{"value": "1", "color": 1}"#),
            "UNKNOWN_FIELD",
        ),
        case(
            "a field twice",
            Grpc::Impossible,
            json(r#"{"value": "1", "value": "2"}"#),
            "INVALID_REQUEST",
        ),
        case(
            "another key in the body",
            Grpc::Impossible,
            json(r#"{"value": "1", "key": "x"}"#),
            "INVALID_KEY",
        ),
        case("a body that is not JSON", Grpc::Impossible, json("value=1"), "INVALID_JSON"),
        case("no body", Grpc::Impossible, json(""), "INVALID_REQUEST"),
        case(
            "version negative",
            Grpc::Impossible,
            json(r#"{"value": "1", "ifVersion": -1}"#),
            "INVALID_VERSION",
        ),
    ]
}

fn batches() -> Vec<Case> {
    let batch = |entries| Grpc::BatchPut(BatchPutRequest { entries, ..BatchPutRequest::default() });
    let post = |body: String| rest(Method::POST, "/api/v1/kv/batch", body);
    let flat = |map: &HashMap<String, String>| serde_json::to_string(map).expect("strings");
    let one_bad =
        entries([("bad/1".to_owned(), "1".to_owned()), ("bad/2".to_owned(), "oops".to_owned())]);
    let no_key = entries([("bad/1".to_owned(), "1".to_owned()), (String::new(), "1".to_owned())]);
    let many = entries((0..10_001).map(|number| (format!("bad/{number}"), "1".to_owned())));
    let million =
        entries((0..1_000_000).map(|number| (format!("bad/{number}"), String::from("1"))));
    let large = entries(
        (0..9).map(|number| (format!("bad/{number}"), format!("\"{}\"", "x".repeat(1_000_000)))),
    );
    let keys: Vec<String> = (0..10_001).map(|number| format!("bad/{number}")).collect();
    let batch_get = serde_json::json!({ "keys": keys }).to_string();
    vec![
        case(
            "one entry that is not JSON",
            batch(one_bad.clone()),
            post(flat(&one_bad)),
            "INVALID_JSON",
        ),
        case("one entry without a key", batch(no_key.clone()), post(flat(&no_key)), "INVALID_KEY"),
        case("10,001 entries", batch(many.clone()), post(flat(&many)), "LIMIT_EXCEEDED"),
        case("a million entries", batch(million.clone()), post(flat(&million)), "LIMIT_EXCEEDED"),
        case("9 MB of entries", batch(large.clone()), post(flat(&large)), "LIMIT_EXCEEDED"),
        case(
            "an entry that is a number",
            Grpc::Impossible,
            post(r#"{"bad": 1}"#.to_owned()),
            "INVALID_JSON",
        ),
        case(
            "a key twice",
            Grpc::Impossible,
            post(r#"{"bad": "1", "bad": "2"}"#.to_owned()),
            "INVALID_REQUEST",
        ),
        case(
            "ttl 0 for a batch",
            Grpc::BatchPut(BatchPutRequest {
                entries: entries([("bad".to_owned(), "1".to_owned())]),
                ttl: Some(0),
                request_id: None,
            }),
            rest(Method::POST, "/api/v1/kv/batch?ttl=0", r#"{"bad": "1"}"#),
            "INVALID_TTL",
        ),
        case(
            "10,001 keys to read",
            Grpc::BatchGet(BatchGetRequest { keys, consistency: 0 }),
            rest(Method::POST, "/api/v1/kv/batch-get", batch_get),
            "LIMIT_EXCEEDED",
        ),
        case(
            "a request of more than 16 MiB",
            Grpc::Put(put("bad", format!("\"{}\"", "x".repeat(17 << 20)))),
            rest(Method::PUT, "/api/v1/json/bad", format!("\"{}\"", "x".repeat(17 << 20))),
            "LIMIT_EXCEEDED",
        ),
    ]
}

fn ranges() -> Vec<Case> {
    let range = |request| Grpc::Range(request);
    let reversed = RangeRequest {
        start_key: "b".to_owned(),
        end_key: "a".to_owned(),
        ..RangeRequest::default()
    };
    let foreign = "AQAAAAAAAAAAYWJj".to_owned();
    let get = |query: &str| rest(Method::GET, format!("/api/v1/kv/range?{query}"), "");
    vec![
        case(
            "a range that ends before it begins",
            range(reversed),
            get("startKey=b&endKey=a"),
            "INVALID_RANGE",
        ),
        case(
            "a scan that ends before it begins",
            Grpc::Scan(ScanRequest {
                start_key: "b".to_owned(),
                end_key: "a".to_owned(),
                ..ScanRequest::default()
            }),
            rest(Method::GET, "/api/v1/kv/scan?startKey=b&endKey=a", ""),
            "INVALID_RANGE",
        ),
        case(
            "limit 0",
            range(RangeRequest { limit: Some(0), ..RangeRequest::default() }),
            get("limit=0"),
            "INVALID_LIMIT",
        ),
        case(
            "a page of 10,001",
            range(RangeRequest { limit: Some(10_001), ..RangeRequest::default() }),
            get("limit=10001"),
            "LIMIT_EXCEEDED",
        ),
        case(
            "a foreign page token",
            range(RangeRequest { page_token: foreign.clone(), ..RangeRequest::default() }),
            get(&format!("pageToken={foreign}")),
            "INVALID_PAGE_TOKEN",
        ),
        case(
            "a page token that is none",
            range(RangeRequest { page_token: "?".repeat(9000), ..RangeRequest::default() }),
            get("pageToken=%3F%3F"),
            "INVALID_PAGE_TOKEN",
        ),
        case("an unknown parameter", Grpc::Impossible, get("order=up"), "UNKNOWN_FIELD"),
        case("a parameter twice", Grpc::Impossible, get("limit=1&limit=2"), "INVALID_REQUEST"),
        case("a limit that is a word", Grpc::Impossible, get("limit=many"), "INVALID_LIMIT"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_with_code_and_reason_and_nothing_is_stored() {
    let node = TestNode::start().await;
    let mut client = node.client().await.max_encoding_message_size(64 << 20);
    let http = Client::new();
    for Case { name, grpc, rest, code, reason: expected } in cases() {
        let answer = match grpc {
            Grpc::Put(request) => Some(client.put(request).await.map(drop)),
            Grpc::Get(request) => Some(client.get(request).await.map(drop)),
            Grpc::Delete(request) => Some(client.delete(request).await.map(drop)),
            Grpc::BatchPut(request) => Some(client.batch_put(request).await.map(drop)),
            Grpc::BatchGet(request) => Some(client.batch_get(request).await.map(drop)),
            Grpc::Range(request) => Some(client.range(request).await.map(drop)),
            Grpc::Scan(request) => Some(client.scan(request).await.map(drop)),
            Grpc::Impossible => None,
        };
        if let Some(answer) = answer {
            let status = answer.expect_err(name);
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (code, expected),
                "{name} over gRPC: {status:?}"
            );
        }
        if let Some((method, path, body)) = rest {
            let response =
                http.request(method, node.url(&path)).body(body).send().await.expect(name);
            let status = response.status();
            let answer: serde_json::Value = response.json().await.expect(name);
            assert_eq!(status, 400, "{name} over REST: {answer}");
            assert_eq!(answer["code"], i32::from(code), "{name} over REST: {answer}");
            assert_eq!(answer["details"][0]["reason"], expected, "{name} over REST: {answer}");
            assert_eq!(answer["details"][0]["domain"], "kvstore", "{name} over REST: {answer}");
        }
    }
    let stats = client.stats(StatsRequest {}).await.expect("the node is well").into_inner();
    assert!(stats.keys == 0.0, "{} keys were stored", stats.keys);
    client.put(put("good", "1")).await.expect("the node is well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_not_protobuf_is_the_callers_fault() {
    let node = TestNode::start().await;
    let http = Client::builder().http2_prior_knowledge().build().expect("a client");
    for (message, expected) in [
        // Field 1, two bytes that are not UTF-8.
        (&b"\x0a\x02\xff\xfe"[..], "INVALID_KEY"),
        // Field 1, five bytes of which three are there.
        (&b"\x0a\x05abc"[..], "INVALID_REQUEST"),
    ] {
        let mut frame = vec![0];
        frame.extend_from_slice(&u32::try_from(message.len()).expect("short").to_be_bytes());
        frame.extend_from_slice(message);
        let url = format!("{}/kvstore.v1.KvService/Get", node.grpc_url());
        let request = http
            .post(url)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(frame);
        let response = request.send().await.expect("an answer");
        let status =
            tonic::Status::from_header_map(response.headers()).expect("a status in the head");
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, expected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_connection_is_cut_off_stores_nothing() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    let address = node.url("").trim_start_matches("http://").to_owned();
    let cut = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("it listens");
        let head = "POST /api/v1/kv/batch HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("a write");
        stream.write_all(b"{\"cut/1\": \"1\", \"cut/2\": \"2\"").expect("a write");
        stream.shutdown(std::net::Shutdown::Write).expect("a half-close");
        let mut answer = Vec::new();
        // Whether there is an answer is the server's choice; that the connection ends is not.
        let _ = stream.read_to_end(&mut answer);
    });
    cut.await.expect("the client does not fail");
    let stats = client.stats(StatsRequest {}).await.expect("the node is well").into_inner();
    assert!(stats.keys == 0.0, "{} keys were stored", stats.keys);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_methods_that_do_not_exist_are_told_apart() {
    let node = TestNode::start().await;
    let http = Client::new();
    let unknown = http.get(node.url("/api/v2/x")).send().await.expect("an answer");
    assert_eq!(unknown.status(), 404);
    let body: serde_json::Value = unknown.json().await.expect("JSON");
    assert_eq!(body["details"][0]["reason"], "UNKNOWN_PATH");
    // A refusal before the body was read leaves the connection in order.
    for path in ["/api/v1/kv/", "/api/v2/x", "/api/v1/json/%zz"] {
        let mut stream = TcpStream::connect(node.url("").trim_start_matches("http://").to_owned())
            .expect("it listens");
        for _ in 0..3 {
            let request =
                format!("PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{{\"v\": 1}} ");
            stream.write_all(request.as_bytes()).expect("the connection is open");
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).expect("the connection is open");
            assert!(answer.starts_with(b"HTTP/1.1 40"), "{path}: {answer:?}");
            let mut rest = [0; 4096];
            let _ = stream.read(&mut rest).expect("the connection is open");
        }
    }
    let wrong = http.patch(node.url("/api/v1/kv/a")).body("{}").send().await.expect("an answer");
    assert_eq!(wrong.status(), 405);
    assert_eq!(wrong.headers()["allow"], "GET, HEAD, PUT, DELETE");
    let wrong = http.post(node.url("/api/v1/kv/stats")).send().await.expect("an answer");
    assert_eq!(wrong.status(), 405);
    let wrong = http.put(node.url("/api/v1/ring")).body("{}").send().await.expect("an answer");
    assert_eq!(wrong.status(), 405);
    assert_eq!(wrong.headers()["allow"], "GET, HEAD");
}
