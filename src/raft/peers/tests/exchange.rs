//! Messages and replies: order, matching, silence, restarts, limits.

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;

use super::*;
use crate::raft::transport::IN_FLIGHT_BYTES_MAX;

/// n1, which knows n2, which has the receiver.
fn pair(receiver: &Arc<Double>) -> (Node, Node) {
    let sender = Node::start(member("n1", 1), &Double::new());
    let receiving = Node::start(member("n2", 2), receiver);
    sender.knows(&[&receiving]);
    (sender, receiving)
}

#[tokio::test]
async fn messages_of_a_lane_arrive_in_the_order_of_the_calls_and_replies_find_their_call() {
    let receiver = Double::new();
    let (sender, _receiving) = pair(&receiver);
    let messages: Vec<String> = (0..3_000).map(|number| format!("message {number}")).collect();
    let mut calls: Vec<_> = messages
        .iter()
        .map(|message| sender.call("n2", Lane::Entries, message.clone(), PATIENCE))
        .collect();
    // The place is that of the call: who asks first for the reply does not matter.
    calls.reverse();
    let mut replies = join_all(calls).await;
    replies.reverse();
    for (message, reply) in messages.iter().zip(replies) {
        assert_eq!(reply.expect("a reply"), format!("re: {message}"));
    }
    assert_eq!(receiver.received(), messages);
}

#[tokio::test]
async fn a_reply_that_is_ready_does_not_wait_for_an_earlier_one() {
    let receiver = Double::new();
    let (sender, _receiving) = pair(&receiver);
    let held = sender.call("n2", Lane::Entries, "hold it", PATIENCE);
    let quick = sender.call("n2", Lane::Entries, "quick", PATIENCE);
    assert_eq!(quick.await.expect("a reply"), "re: quick");
    receiver.release();
    assert_eq!(held.await.expect("a reply"), "re: hold it");
}

#[tokio::test]
async fn a_node_that_never_answers_loses_the_call_in_time_and_holds_up_no_other_lane() {
    let receiver = Double::new();
    let (sender, _receiving) = pair(&receiver);
    let timeout = Duration::from_millis(300);
    let began = Instant::now();
    let held = sender.call("n2", Lane::Entries, "hold it", timeout);
    let other = sender.call("n2", Lane::Control, "alive?", PATIENCE);
    assert_eq!(other.await.expect("a reply"), "re: alive?");
    let failure = held.await.expect_err("nobody answers");
    assert_eq!(failure, Failure::Lost("node n2: no reply within 300ms".into()));
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stream_without_a_sign_of_life_is_made_anew() {
    let receiver = Double::new();
    let (sender, receiving) = pair(&receiver);
    let first = sender.call("n2", Lane::Entries, "hold 0", PATIENCE);
    // Each is late by itself; when the stream was silent for long enough, the one that waits longer goes with it.
    let until = Instant::now() + PATIENCE;
    let mut first = Box::pin(first);
    let failure = loop {
        let late = sender.call("n2", Lane::Entries, "hold", Duration::from_millis(50));
        tokio::select! {
            biased;
            failure = &mut first => break failure.expect_err("nobody answers"),
            late = late => assert!(late.is_err() && Instant::now() < until),
        }
    };
    let why = format!("node n2 at {}: no sign of life for 2s", receiving.endpoint);
    assert_eq!(failure, Failure::Lost(why));
    receiver.release();
    assert_eq!(sender.call_until_replied("n2", Lane::Entries, "again").await, "re: again");
}

#[tokio::test]
async fn a_port_that_accepts_and_says_nothing_makes_calls_unreachable_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let sender = Node::start(member("n1", 1), &Double::new());
    let address = silent.local_addr().expect("it is bound").to_string();
    sender.local.set_addresses([(name("n2"), address.parse().expect("an address"))].into());
    let timeout = Duration::from_millis(200);
    let failure = sender.call("n2", Lane::Control, "hello", timeout).await;
    assert_eq!(
        failure.expect_err("nobody is there"),
        Failure::Unreachable("node n2: it took no message within 200ms".into())
    );
    // The probe of the connection and the wait for the handshake end at about the same time.
    let why = sender.refusal("n2").await;
    let either = ["no answer within 2s", "operation timed out"];
    let whys = either.map(|why| format!("node n2 at {address}: {why}"));
    assert!(whys.contains(&why), "{why}");
}

#[tokio::test]
async fn a_node_that_was_killed_is_reached_again_when_it_is_back() {
    let receiver = Double::new();
    let (sender, receiving) = pair(&receiver);
    let held = sender.call("n2", Lane::Control, "hold it", PATIENCE);
    receiver.came(1).await;
    let address = receiving.kill();
    let failure = held.await.expect_err("it was killed");
    assert!(matches!(failure, Failure::Lost(_)), "it was delivered: {failure:?}");
    let failure = sender.call("n2", Lane::Control, "hello", PATIENCE).await;
    assert!(matches!(failure, Err(Failure::Unreachable(_))), "{failure:?}");
    // While it is down calls fail at once, with the reason.
    let why = sender.refusal("n2").await;
    assert!(why.starts_with(&format!("node n2 at {address}: ")), "{why}");

    let receiver = Double::new();
    let back = Node::start_at(member("n2", 2), address);
    back.service.receive_with(Arc::clone(&receiver) as Arc<dyn Receiver>);
    assert_eq!(sender.call_until_replied("n2", Lane::Control, "hello").await, "re: hello");
    // Nothing of before is delivered later.
    assert!(receiver.received().iter().all(|message| message == "hello"));
}

#[tokio::test]
async fn a_node_that_moved_is_reached_at_its_new_address() {
    let receiver = Double::new();
    let (sender, old) = pair(&receiver);
    assert_eq!(sender.call_until_replied("n2", Lane::Control, "hello").await, "re: hello");
    let new_receiver = Double::new();
    let new = Node::start(member("n2", 2), &new_receiver);
    let held = sender.call("n2", Lane::Control, "hold it", PATIENCE);
    receiver.came(2).await;
    sender.knows(&[&new]);
    let failure = held.await.expect_err("the stream was ended");
    assert_eq!(failure, Failure::Lost("node n2: its address has changed".into()));
    assert_eq!(sender.call_until_replied("n2", Lane::Control, "here?").await, "re: here?");
    assert_eq!(new_receiver.received(), ["here?"]);
    drop(old);
}

#[tokio::test]
async fn no_more_bytes_are_in_flight_than_allowed() {
    const MESSAGES: usize = 40;
    const MESSAGE_BYTES: usize = 1 << 20;
    let receiver = Double::new();
    let (sender, _receiving) = pair(&receiver);
    let link = super::super::link::Link::new(
        Arc::clone(&sender.local),
        name("n2"),
        Lane::Entries,
        Arc::default(),
        sender.runtime.as_ref().expect("it runs").handle(),
    );
    let mut message = vec![b'x'; MESSAGE_BYTES];
    message[..4].copy_from_slice(b"hold");
    let message = Bytes::from(message);
    let calls: Vec<_> = (0..MESSAGES).map(|_| link.call(message.clone(), PATIENCE)).collect();
    // With what is around them, one fewer than bytes alone would let in.
    let fit = IN_FLIGHT_BYTES_MAX / MESSAGE_BYTES - 1;
    receiver.came(fit).await;
    let (bytes, waiting) = link.load();
    assert!(bytes <= IN_FLIGHT_BYTES_MAX, "{bytes} bytes are in flight");
    assert_eq!(waiting, MESSAGES - fit);
    // One above waits, and gives up in time without having been delivered.
    let late = link.call(message.clone(), Duration::from_millis(100)).await;
    let expected = Failure::Unreachable("node n2: it took no message within 100ms".into());
    assert_eq!(late.expect_err("there is no room"), expected);
    // Nor does more wait than allowed.
    let mut more = Vec::new();
    let refused = loop {
        assert!(more.len() < MESSAGES + fit, "more and more wait");
        let mut call = link.call(message.clone(), PATIENCE);
        match futures::poll!(&mut call) {
            std::task::Poll::Ready(refused) => break refused.expect_err("it cannot be answered"),
            std::task::Poll::Pending => more.push(call),
        }
    };
    let waiting = (MESSAGES - fit + more.len()) * (MESSAGE_BYTES + 64);
    let expected = format!("node n2: {waiting} bytes wait for it already");
    assert_eq!(refused, Failure::Unreachable(expected));
    assert!(waiting < 2 * IN_FLIGHT_BYTES_MAX + 2 * MESSAGE_BYTES, "{waiting}");
    drop(more);
    receiver.release();
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(receiver.received().len(), MESSAGES);
    assert_eq!(link.load(), (0, 0));
}

#[tokio::test]
async fn a_call_that_is_dropped_before_it_was_written_is_not_delivered() {
    let receiver = Double::new();
    let sender = Node::start(member("n1", 1), &Double::new());
    let address = sender.address();
    drop(sender.call("n2", Lane::Control, "to nobody", PATIENCE));
    let receiving = Node::start(member("n2", 2), &receiver);
    sender.knows(&[&receiving]);
    // The first call makes the stream; the one behind it is given up before that can be.
    let first = sender.call("n2", Lane::Control, "first", PATIENCE);
    drop(sender.call("n2", Lane::Control, "given up", PATIENCE));
    let last = sender.call("n2", Lane::Control, "last", PATIENCE);
    assert!(first.await.is_ok() && last.await.is_ok(), "{address}");
    assert_eq!(receiver.received(), ["first", "last"]);
}

#[tokio::test]
async fn what_can_never_be_delivered_is_refused_at_once() {
    let (sender, _receiving) = pair(&Double::new());
    let failure = sender.call("n9", Lane::Control, "hello", PATIENCE).await;
    let expected = Failure::Unreachable("node n9: its address is not known".into());
    assert_eq!(failure.expect_err("nobody knows it"), expected);
    let large = vec![0; IN_FLIGHT_BYTES_MAX + 1];
    let failure = sender.call("n2", Lane::Entries, large, PATIENCE).await;
    let expected = Failure::Unreachable(
        "node n2: a message has 33554433 bytes, at most 33554432 are taken".into(),
    );
    assert_eq!(failure.expect_err("it is too large"), expected);
    let largest = vec![0; IN_FLIGHT_BYTES_MAX];
    let reply = sender.call("n2", Lane::Entries, largest, PATIENCE).await;
    assert!(reply.is_ok(), "{reply:?}");
}

#[tokio::test]
async fn a_node_that_stops_answers_what_it_began() {
    let receiver = Double::new();
    let (sender, receiving) = pair(&receiver);
    let held = sender.call("n2", Lane::Control, "hold it", PATIENCE);
    receiver.came(1).await;
    receiving.stopping.cancel();
    receiver.release();
    assert_eq!(held.await.expect("it was begun"), "re: hold it");
    let failure = sender.call("n2", Lane::Control, "more", PATIENCE).await;
    assert!(failure.is_err(), "{failure:?}");
}

#[tokio::test]
async fn streams_that_are_told_to_be_made_anew_lose_nothing() {
    let receiver = Double::new();
    let sender = Node::start(member("n1", 1), &Double::new());
    let age = Some(Duration::from_millis(20));
    let receiving = Node::start(Setup { connection_age: age, ..member("n2", 2) }, &receiver);
    sender.knows(&[&receiving]);
    let began = Instant::now();
    let (mut calls, mut made) = (FuturesUnordered::new(), 0);
    while began.elapsed() < Duration::from_millis(500) {
        while calls.len() < 8 {
            calls.push(sender.call("n2", Lane::Callers, format!("message {made}"), PATIENCE));
            made += 1;
        }
        let reply = calls.next().await.expect("some are in flight");
        assert!(reply.is_ok(), "{reply:?}");
    }
    while let Some(reply) = calls.next().await {
        assert!(reply.is_ok(), "{reply:?}");
    }
    let expected: Vec<String> = (0..made).map(|number| format!("message {number}")).collect();
    assert_eq!(receiver.received(), expected);
}

#[tokio::test]
async fn a_node_that_is_no_member_any_more_is_cut_off() {
    let receiver = Double::new();
    let (sender, receiving) = pair(&receiver);
    assert_eq!(sender.call_until_replied("n2", Lane::Control, "hello").await, "re: hello");
    assert!(!sender.local.is_expelled());
    let mut without = three();
    without.members.remove(&name("n1"));
    receiving.local.set_formed(without);
    let until = Instant::now() + PATIENCE;
    let why = loop {
        match sender.call("n2", Lane::Control, "still here?", PATIENCE).await {
            Err(Failure::Unreachable(why)) if why.contains("was removed") => break why,
            other => assert!(Instant::now() < until, "{other:?}"),
        }
    };
    assert!(why.ends_with("node n1 was removed from this cluster, or never joined it (members: n2 and n3); empty its data directory and start it with kvstore.cluster.join under a new name"), "{why}");
    tokio::time::timeout(PATIENCE, sender.local.expelled())
        .await
        .expect("it knows that it was removed");
}
