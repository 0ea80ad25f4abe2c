//! `Session`: many operations on one stream.

use std::collections::HashMap;

use kvstore::proto::v1::session_request::Operation;
use kvstore::proto::v1::session_response::Result as Answer;
use kvstore::proto::v1::{
    BatchPutRequest, DeleteRequest, GetResponse, RangeRequest, SessionRequest,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::node::{PATIENCE, TestNode, get, put, text};

type Answers = Streaming<kvstore::proto::v1::SessionResponse>;

async fn open(node: &TestNode) -> (mpsc::Sender<SessionRequest>, Answers) {
    let (sender, requests) = mpsc::channel(16);
    let mut client = node.client().await;
    let answers =
        client.session(ReceiverStream::new(requests)).await.expect("the node takes sessions");
    (sender, answers.into_inner())
}

fn operation(id: u64, operation: Operation) -> SessionRequest {
    SessionRequest { id, operation: Some(operation) }
}

async fn next(answers: &mut Answers) -> Option<(u64, Answer)> {
    let answer = timeout(PATIENCE, answers.message())
        .await
        .expect("in time")
        .expect("the session goes on")?;
    Some((answer.id, answer.result.expect("an answer has a result")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_is_answered_under_its_id() {
    let node = TestNode::start().await;
    let (sender, mut answers) = open(&node).await;
    let batch = BatchPutRequest {
        entries: HashMap::from([
            ("b/1".to_owned(), "1".to_owned()),
            ("b/2".to_owned(), "2".to_owned()),
        ]),
        ..BatchPutRequest::default()
    };
    let range = RangeRequest { prefix: Some("b/".to_owned()), ..RangeRequest::default() };
    let delete = DeleteRequest { key: "b/1".to_owned(), ..DeleteRequest::default() };
    let operations = [
        Operation::Put(put("a", "{\"x\": 1}")),
        Operation::Get(get("a")),
        Operation::BatchPut(batch),
        Operation::Range(range),
        Operation::Delete(delete),
        Operation::Get(get("b/1")),
        Operation::Put(put("", "1")),
    ];
    let mut results = HashMap::new();
    for (id, one) in (10..).zip(operations) {
        sender.send(operation(id, one)).await.expect("the session takes it");
        let (answered, result) = next(&mut answers).await.expect("an answer");
        assert_eq!(answered, id);
        results.insert(id, result);
    }
    assert!(
        matches!(&results[&11], Answer::Get(GetResponse { content, .. }) if text(content.clone()) == "{\"x\": 1}")
    );
    assert!(matches!(&results[&12], Answer::BatchPut(put) if put.count == 2));
    assert!(matches!(&results[&13], Answer::Range(range) if range.items.len() == 2));
    assert!(matches!(&results[&14], Answer::Delete(delete) if delete.deleted));
    assert!(
        matches!(&results[&15], Answer::Status(status) if status.code == 5),
        "{:?}",
        results[&15]
    );
    assert!(
        matches!(&results[&16], Answer::Status(status) if status.code == 3),
        "{:?}",
        results[&16]
    );
    sender.send(SessionRequest { id: 99, operation: None }).await.expect("the session takes it");
    assert!(
        matches!(next(&mut answers).await, Some((99, Answer::Status(status))) if status.code == 3)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_on_one_key_keep_their_order_without_waiting_for_answers() {
    let node = TestNode::start().await;
    let (sender, mut answers) = open(&node).await;
    let feed = tokio::spawn(async move {
        for round in 0..200 {
            sender
                .send(operation(2 * round, Operation::Put(put("k", round.to_string()))))
                .await
                .expect("it is read");
            sender
                .send(operation(2 * round + 1, Operation::Get(get("k"))))
                .await
                .expect("it is read");
        }
    });
    let mut gets = 0;
    while let Some((id, answer)) = next(&mut answers).await {
        if let Answer::Get(found) = answer {
            assert_eq!(text(found.content), (id / 2).to_string(), "the get with id {id}");
            gets += 1;
        }
    }
    feed.await.expect("all was sent");
    assert_eq!(gets, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_in_flight_are_all_answered_after_a_half_close() {
    let node = TestNode::with(&["kvstore.limits.session-operations=64"]).await;
    let (sender, mut answers) = open(&node).await;
    let feed = tokio::spawn(async move {
        for id in 0..5_000_u64 {
            sender
                .send(operation(id, Operation::Put(put(format!("k{id}"), "1"))))
                .await
                .expect("it is read");
        }
        // Dropping the sender closes this half.
    });
    let mut answered = vec![false; 5_000];
    while let Some((id, answer)) = next(&mut answers).await {
        assert!(matches!(answer, Answer::Put(_)), "{answer:?}");
        assert!(
            !std::mem::replace(&mut answered[usize::try_from(id).expect("small")], true),
            "{id} twice"
        );
    }
    feed.await.expect("all was sent");
    assert!(answered.iter().all(|&one| one));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_held_back_and_harms_nobody() {
    let node = TestNode::with(&["kvstore.limits.session-operations=16"]).await;
    let mut client = node.client().await;
    let value = format!("\"{}\"", "x".repeat(10_000));
    client.put(put("big", value)).await.expect("stored");
    let (sender, mut answers) = open(&node).await;
    let mut sent = 0;
    // The window and the buffers of HTTP/2 hold some; then the server reads no more.
    while timeout(
        std::time::Duration::from_millis(500),
        sender.send(operation(sent, Operation::Get(get("big")))),
    )
    .await
    .is_ok()
    {
        sent += 1;
        assert!(sent < 100_000, "the server reads on although nobody takes its answers");
    }
    client.get(get("big")).await.expect("others are served");
    // Once the client reads, all that was sent is answered.
    drop(sender);
    let mut answered = 0;
    while next(&mut answers).await.is_some() {
        answered += 1;
    }
    assert_eq!(answered, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_answers_what_it_has_and_ends_the_session() {
    let mut node = TestNode::start().await;
    let (sender, mut answers) = open(&node).await;
    sender.send(operation(1, Operation::Put(put("a", "1")))).await.expect("it is read");
    assert!(matches!(next(&mut answers).await, Some((1, Answer::Put(_)))));
    let stop = tokio::spawn(async move { node.stop().await });
    let end =
        timeout(PATIENCE, answers.message()).await.expect("in time").expect_err("the session ends");
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end:?}");
    stop.await.expect("the node stops");
}
