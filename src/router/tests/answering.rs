//! What a node answers when others ask it: within its time and its memory, and nothing that it does not understand.

use bytes::Bytes;

use super::*;
use crate::cluster::NodeName;
use crate::raft::Answers as _;
use crate::router::remote::{Answer, Question, Told, Wanted, What, decode_answer};

const MEBIBYTE: usize = 1 << 20;

/// Most bytes of answers at a time, and of one: so many of the largest fit.
const LARGEST_AT_A_TIME: usize = 8;

fn ask(
    answerer: &Answerer,
    what: &What,
    freshness: Freshness,
    left: Duration,
) -> impl Future<Output = Result<Answer>> + Send + use<> {
    let question = Question { what, shards: vec![ShardId(0)], freshness, left }.encode();
    let answer = answerer.answer(&NodeName("n2".to_owned()), question);
    async move { decode_answer(&answer.await).expect("an answer") }
}

fn wanted(keys: Vec<Key>, bytes_max: usize) -> What {
    let places = vec![(ShardId(0), (0..keys.len()).collect())];
    What::Documents(Wanted { keys, places, bytes_max })
}

/// Timers count in milliseconds, and a pause does not begin with one.
fn is_about(elapsed: Duration, expected: Duration) -> bool {
    (expected..=expected + Duration::from_millis(2)).contains(&elapsed)
}

#[tokio::test]
async fn a_question_of_another_version_is_not_served() {
    let bench = Bench::new(1);
    let answerer = Answerer::new(bench.router.clone());
    for question in [&[][..], &[2, 1, 0], &[1, 9, 0], b"what is this"] {
        let from = NodeName("n2".to_owned());
        let answer = answerer.answer(&from, Bytes::copy_from_slice(question)).await;
        let error = decode_answer(&answer).expect("an answer").expect_err("it makes no sense");
        // Another node may be of a version that knows it.
        assert_eq!(error.reason(), Reason::NotServing, "{error}");
    }
}

#[tokio::test]
async fn an_answer_larger_than_a_message_names_the_limit() {
    let bench = Bench::new(1);
    let keys: Vec<_> = (0..34).map(|number| key(&format!("k/{number}"))).collect();
    for key in &keys {
        let value = Value::Raw(vec![7; MEBIBYTE].into());
        let put = Put { key: key.clone(), value, ..put("x", "1") };
        bench.router.put(put, deadline()).expect("there is room").await.expect("stored");
    }
    let answerer = Answerer::new(bench.router.clone());
    let answer = async |count: usize, bytes_max| {
        let what = wanted(keys[..count].to_vec(), bytes_max);
        ask(&answerer, &what, Freshness::Stale, Duration::from_secs(30)).await
    };
    let Told::Documents(documents) = answer(31, usize::MAX).await.expect("it fits").told else {
        panic!("documents were asked for");
    };
    assert_eq!(documents.len(), 31);
    let error = answer(34, usize::MAX).await.expect_err("it does not fit");
    assert_eq!(error.reason(), Reason::LimitExceeded);
    assert!(error.message().contains("what nodes send each other"), "{error}");
    let error = answer(3, 2 * MEBIBYTE).await.expect_err("the caller allows less");
    assert_eq!(error.reason(), Reason::LimitExceeded);
    assert!(error.message().contains("kvstore.limits.page-size"), "{error}");
}

/// A write of `k` whose sync is held until the bench's gate is released: reads that have to be durable wait for it.
fn park(bench: &Bench) -> impl Future<Output = Result<Version>> + use<> {
    bench.gates[0].hold();
    let late = Instant::now() + Duration::from_hours(2);
    let parked = bench.router.put(put("k", "1"), late).expect("there is room");
    bench.gates[0].wait_for_sync();
    parked
}

/// A question waits for its part of the memory, as long as it may; then others do.
#[tokio::test]
async fn answers_are_made_while_there_is_room_for_them() {
    let bench = Bench::new(1);
    let answerer = Answerer::new(bench.router.clone());
    let parked = park(&bench);
    let keys: Vec<_> = (0..1_000).map(|number| key(&format!("k/{number}"))).collect();
    let large = wanted(keys, usize::MAX);
    let hour = Duration::from_hours(1);
    let waiting: Vec<_> = (0..LARGEST_AT_A_TIME)
        .map(|_| tokio::spawn(ask(&answerer, &large, Freshness::Linearizable, hour)))
        .collect();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    let begun = Instant::now();
    let left = Duration::from_secs(2);
    let error = ask(&answerer, &large, Freshness::Stale, left).await.expect_err("there is no room");
    assert_eq!(error.reason(), Reason::Overloaded, "{error}");
    assert!(is_about(begun.elapsed(), left), "it waits for as long as it may");
    tokio::time::resume();
    let small = wanted(vec![key("k")], 10);
    ask(&answerer, &small, Freshness::Stale, left).await.expect("this one fits");
    bench.gates[0].release();
    parked.await.expect("stored");
    for answer in waiting {
        answer.await.expect("no panic").expect("it is durable now");
    }
    ask(&answerer, &large, Freshness::Stale, left).await.expect("there is room again");
}

/// Nobody works for longer than the asking node waits, nor for longer than a minute.
#[tokio::test]
async fn an_answer_ends_in_time() {
    let bench = Bench::new(1);
    let answerer = Answerer::new(bench.router.clone());
    let parked = park(&bench);
    let what = wanted(vec![key("k")], 10);
    for (left, takes) in [(3, 3), (3_600, 60)]
        .map(|(left, takes)| (Duration::from_secs(left), Duration::from_secs(takes)))
    {
        tokio::time::pause();
        let begun = Instant::now();
        let answer = ask(&answerer, &what, Freshness::Linearizable, left).await;
        assert_eq!(answer.expect_err("not durable").reason(), Reason::Overloaded);
        assert!(is_about(begun.elapsed(), takes), "{:?}", begun.elapsed());
        tokio::time::resume();
    }
    bench.gates[0].release();
    parked.await.expect("stored");
}
