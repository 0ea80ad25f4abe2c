//! The client of the command line against nodes and connections that fail: what is tried again, and what is said in the end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use kvstore::net::{Client, Endpoint};
use kvstore::proto::admin::CompactRequest;
use kvstore::proto::v1::{PutRequest, ScanRequest};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::node::{PATIENCE, TestNode, get, put};

/// What a scripted node does with a call.
enum Step {
    /// Fails without saying why, as a proxy or a broken connection does.
    Bare(Code),
    /// Answers as a node does.
    Answer(Code, &'static str),
    /// Says nothing at all.
    Silence,
}

/// A node that follows a script, one step for each call; the last step is repeated. What it was sent is kept.
struct Scripted {
    endpoint: Endpoint,
    requests: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Scripted {
    async fn start(steps: impl IntoIterator<Item = Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = listener.local_addr().expect("it is bound").to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (steps, kept) =
            (Arc::new(Mutex::new(steps.into_iter().collect::<VecDeque<_>>())), requests.clone());
        let answer = move |request: Request| async move {
            let body = to_bytes(request.into_body(), 1 << 20).await.expect("a whole request");
            kept.lock().push(body[5..].to_vec());
            let status = {
                let mut steps = steps.lock();
                let step = steps.pop_front().expect("the script has a step");
                let status = match step {
                    Step::Bare(code) => Some(Status::new(code, "no reason")),
                    Step::Answer(code, reason) => {
                        let details = ErrorDetails::with_error_info(reason, "kvstore", []);
                        Some(Status::with_error_details(code, "because", details))
                    }
                    Step::Silence => None,
                };
                if steps.is_empty() {
                    steps.push_back(step);
                }
                status
            };
            match status {
                Some(status) => status.into_http::<axum::body::Body>(),
                None => std::future::pending().await,
            }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Self { endpoint: endpoint.parse().expect("an endpoint"), requests }
    }

    fn client(&self, timeout: Duration) -> Client {
        Client::new([self.endpoint.clone()], timeout)
    }

    /// The request ids of the puts that came.
    fn request_ids(&self) -> Vec<Option<String>> {
        let requests = self.requests.lock();
        let decoded = requests.iter().map(|bytes| PutRequest::decode(bytes.as_slice()));
        decoded.map(|put| put.expect("a put").request_id).collect()
    }
}

/// An address where nobody listens.
async fn nobody() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("it is bound").to_string().parse().expect("an endpoint")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_repeated_with_its_request_id_until_a_node_answers_for_good() {
    let node = Scripted::start([
        Step::Bare(Code::Unavailable),
        Step::Answer(Code::ResourceExhausted, "OVERLOADED"),
        Step::Answer(Code::DeadlineExceeded, "OUTCOME_UNKNOWN"),
        Step::Answer(Code::Aborted, "VERSION_MISMATCH"),
    ])
    .await;
    let failure = node.client(PATIENCE).put(put("k", "1")).await.expect_err("refused");
    assert_eq!(failure.reason, "VERSION_MISMATCH");
    assert!(!failure.maybe_applied, "the node knows the id, so its answer holds for all tries");
    let ids = node.request_ids();
    assert_eq!(ids.len(), 4);
    assert!(ids[0].is_some() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let other = node.client(PATIENCE).put(put("k", "1")).await.expect_err("refused");
    assert_eq!(other.reason, "VERSION_MISMATCH");
    assert_ne!(node.request_ids()[4], ids[0], "another write has another id");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_mended_is_not_repeated() {
    for (code, reason) in [
        (Code::InvalidArgument, "LIMIT_EXCEEDED"),
        (Code::FailedPrecondition, "FAILED_PRECONDITION"),
        (Code::DataLoss, "CORRUPTION"),
    ] {
        let node = Scripted::start([Step::Answer(code, reason)]).await;
        let failure = node.client(PATIENCE).put(put("k", "1")).await.expect_err("refused");
        assert_eq!((failure.reason.as_str(), failure.maybe_applied), (reason, false));
        assert_eq!(node.requests.lock().len(), 1, "{reason}");
    }
    let node = Scripted::start([Step::Bare(Code::Unimplemented)]).await;
    let failure = node.client(PATIENCE).get(get("k")).await.expect_err("no such service");
    assert_eq!((failure.word(), node.requests.lock().len()), ("UNIMPLEMENTED", 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_without_an_id_is_repeated_only_when_it_was_certainly_not_made() {
    let node = Scripted::start([
        Step::Answer(Code::Unavailable, "NOT_SERVING"),
        Step::Bare(Code::Unavailable),
    ])
    .await;
    let compact = CompactRequest { shard: None };
    let failure = node.client(PATIENCE).compact(compact).await.expect_err("the connection broke");
    assert_eq!((failure.reason.as_str(), failure.maybe_applied), ("OUTCOME_UNKNOWN", true));
    assert_eq!(node.requests.lock().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_covers_all_tries_and_says_what_may_have_happened() {
    let timeout = Duration::from_millis(300);
    let begun = Instant::now();
    let silent = Scripted::start([Step::Silence]).await;
    let failure = silent.client(timeout).put(put("k", "1")).await.expect_err("no answer");
    assert_eq!((failure.reason.as_str(), failure.maybe_applied), ("OUTCOME_UNKNOWN", true));
    let failure = silent.client(timeout).get(get("k")).await.expect_err("no answer");
    assert_eq!((failure.reason.as_str(), failure.maybe_applied), ("DEADLINE_EXCEEDED", false));
    let broken = Scripted::start([Step::Bare(Code::Unavailable)]).await;
    let failure = broken.client(timeout).put(put("k", "1")).await.expect_err("never answered");
    assert_eq!((failure.reason.as_str(), failure.maybe_applied), ("OUTCOME_UNKNOWN", true));
    let away = Client::new([nobody().await], timeout);
    let failure = away.put(put("k", "1")).await.expect_err("nobody is there");
    assert_eq!((failure.word(), failure.maybe_applied), ("UNAVAILABLE", false));
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_to_the_endpoint_that_answers() {
    let node = TestNode::start().await;
    let live: Endpoint = node.grpc_url().parse().expect("an endpoint");
    let stopping = Scripted::start([Step::Answer(Code::Unavailable, "NOT_SERVING")]).await;
    let endpoints = [nobody().await, stopping.endpoint.clone(), live];
    let client = Client::new(endpoints, PATIENCE);
    for key in ["a", "b", "c"] {
        client.put(put(key, "1")).await.expect("the third one stores it");
    }
    assert!(client.get(get("a")).await.expect("an answer").is_some());
    assert!(client.get(get("none")).await.expect("an answer").is_none());
    assert_eq!(stopping.requests.lock().len(), 1, "it is not asked again");
}

/// A way to `target` whose first connection breaks after so many bytes of answers; how many connections came.
async fn breaking(target: String, bytes: usize) -> (Endpoint, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = listener.local_addr().expect("it is bound").to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let left = if counted.fetch_add(1, Ordering::SeqCst) == 0 { bytes } else { usize::MAX };
            let server = TcpStream::connect(&target).await.expect("the node listens");
            tokio::spawn(pass(client, server, left));
        }
    });
    (endpoint.parse().expect("an endpoint"), connections)
}

async fn pass(client: TcpStream, server: TcpStream, mut left: usize) {
    let (mut client_reads, mut client_writes) = client.into_split();
    let (mut server_reads, mut server_writes) = server.into_split();
    let answers = async {
        let mut buffer = vec![0; 4 << 10];
        while let Ok(read @ 1..) = server_reads.read(&mut buffer).await {
            let some = read.min(left);
            left -= some;
            if client_writes.write_all(&buffer[..some]).await.is_err() || left == 0 {
                return;
            }
        }
    };
    tokio::select! {
        () = answers => {}
        _ = tokio::io::copy(&mut client_reads, &mut server_writes) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_whose_connection_breaks_goes_on_where_it_was() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    let keys: Vec<String> = (0..300).map(|number| format!("k{number:03}")).collect();
    let value = format!("\"{}\"", "x".repeat(1_000));
    for key in &keys {
        client.put(put(key.as_str(), value.as_str())).await.expect("stored");
    }
    let target = node.grpc_url().replace("http://", "");
    for (reverse, limit, wanted) in
        [(false, None, &keys[..]), (true, None, &keys[..]), (false, Some(250), &keys[..250])]
    {
        let (endpoint, connections) = breaking(target.clone(), 100_000).await;
        let client = Client::new([endpoint], PATIENCE);
        let request = ScanRequest { reverse, limit, ..ScanRequest::default() };
        let mut scan = client.scan(request);
        let mut found = Vec::new();
        while let Some(item) = scan.next().await.expect("it goes on") {
            found.push(item.key);
        }
        if reverse {
            found.reverse();
        }
        assert_eq!(found, wanted, "reverse: {reverse}");
        assert_eq!(connections.load(Ordering::SeqCst), 2, "the first one broke");
    }
}
