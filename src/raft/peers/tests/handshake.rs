//! Who is let in, and what is said to those who are not.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::super::handshake::Calling;
use super::*;
use crate::net::{KeepAlive, open};
use crate::proto::raft::raft_service_client::RaftServiceClient;
use crate::proto::raft::{
    ExchangeRequest, Frame, HandshakeRequest, Hello, Proof, handshake_request, handshake_response,
};

pub(super) type Client = RaftServiceClient<tonic::transport::Channel>;

/// What a sender that is set up like `setup` hears from a node that is set up like `other`, after `node NAME at ADDRESS: `.
async fn refusal(setup: Setup, other: Setup) -> String {
    let to = other.name;
    let receiver = Double::new();
    let (sender, receiving) = (Node::start(setup, &Double::new()), Node::start(other, &receiver));
    sender.local.set_addresses([(name("n2"), receiving.endpoint.clone())].into());
    let why = sender.refusal("n2").await;
    assert!(receiver.received().is_empty(), "{to} took a message");
    let prefix = format!("node n2 at {}: ", receiving.endpoint);
    why.strip_prefix(&prefix).unwrap_or_else(|| panic!("{why}")).to_owned()
}

#[tokio::test]
async fn who_does_not_belong_here_is_told_why_and_what_to_do() {
    let differ = "the cluster secrets differ; set the same kvstore.cluster.secret on all nodes";
    let wrong = Setup { secret: "guessed", ..member("n1", 1) };
    assert_eq!(refusal(wrong, member("n2", 2)).await, differ);
    let none = Setup { secret: "", ..member("n1", 1) };
    assert_eq!(refusal(none, member("n2", 2)).await, differ);

    let (ours, theirs) = (three().cluster, formed(&[("n1", 1), ("n2", 7)]).cluster);
    let elsewhere =
        Setup { standing: Standing::Formed(formed(&[("n1", 1), ("n2", 7)])), ..member("n1", 1) };
    assert_eq!(
        refusal(elsewhere, member("n2", 2)).await,
        format!(
            "node n1 belongs to cluster {theirs}, node n2 to cluster {ours}; correct kvstore.cluster.members, or kvstore.storage.data-dir of the node that is wrong here"
        )
    );

    assert_eq!(
        refusal(member("n1", 9), member("n2", 2)).await,
        format!(
            "node n1 presents incarnation {} but this cluster knows it as {}: its data directory was wiped or replaced; remove it and add it under a new name",
            incarnation(9),
            incarnation(1)
        )
    );

    assert_eq!(
        refusal(member("n4", 4), member("n2", 2)).await,
        "node n4 was removed from this cluster, or never joined it (members: n1, n2 and n3); empty its data directory and start it with kvstore.cluster.join under a new name"
    );

    assert_eq!(
        refusal(member("n1", 1), member("n3", 3)).await,
        "this is node n3, not n2; correct the address of n2 in kvstore.cluster.members"
    );

    let forming = Standing::Forming(names(&["n1", "n2", "n3"]));
    let early = Setup { standing: forming, ..member("n2", 2) };
    assert_eq!(refusal(member("n1", 1), early).await, "node n2 has not formed its cluster yet");
}

#[tokio::test]
async fn the_callee_has_to_prove_as_much_as_the_caller() {
    // The same cluster id, but another data directory than the caller knows: it is found out by the caller.
    let replaced = formed(&[("n1", 1), ("n2", 8), ("n3", 3)]);
    let mut table = three();
    table.members = replaced.members;
    let impostor = Setup { standing: Standing::Formed(table), ..member("n2", 8) };
    assert_eq!(
        refusal(member("n1", 1), impostor).await,
        format!(
            "node n2 presents incarnation {} but this cluster knows it as {}: its data directory was wiped or replaced; remove it and add it under a new name",
            incarnation(8),
            incarnation(2)
        )
    );
}

#[tokio::test]
async fn without_a_secret_nodes_meet_as_well() {
    let receiver = Double::new();
    let sender = Node::start(Setup { secret: "", ..member("n1", 1) }, &Double::new());
    let receiving = Node::start(Setup { secret: "", ..member("n2", 2) }, &receiver);
    sender.knows(&[&receiving]);
    assert_eq!(sender.call_until_replied("n2", Lane::Control, "hello").await, "re: hello");
}

#[tokio::test]
async fn a_node_that_is_starting_takes_no_messages() {
    let sender = Node::start(member("n1", 1), &Double::new());
    let starting = Node::start_at(member("n2", 2), ([127, 0, 0, 1], 0).into());
    sender.knows(&[&starting]);
    let why = sender.refusal("n2").await;
    assert!(why.ends_with(": node n2 is starting"), "{why}");
    starting.service.receive_with(Double::new());
    assert_eq!(sender.call_until_replied("n2", Lane::Control, "hello").await, "re: hello");
}

pub(super) async fn connect(node: &Node) -> Client {
    let second = Duration::from_secs(1);
    let keep_alive = KeepAlive { interval: second, timeout: second, while_idle: true };
    RaftServiceClient::new(open(&node.endpoint, keep_alive).await.expect("it listens"))
}

/// A handshake by hand: says `hello`, and what `prove` makes of the challenge.
pub(super) async fn shake(
    client: &mut Client,
    hello: Hello,
    prove: impl FnOnce(crate::proto::raft::Challenge) -> Proof,
) -> Result<crate::proto::raft::Welcome, Status> {
    let (steps, outgoing) = mpsc::channel(2);
    let step = |step| HandshakeRequest { step: Some(step) };
    steps.send(step(handshake_request::Step::Hello(hello))).await.expect("there is room");
    let mut answers = client.handshake(ReceiverStream::new(outgoing)).await?.into_inner();
    let first = answers.message().await?.and_then(|answer| answer.step);
    let Some(handshake_response::Step::Challenge(challenge)) = first else {
        panic!("no challenge: {first:?}");
    };
    steps
        .send(step(handshake_request::Step::Proof(prove(challenge))))
        .await
        .expect("there is room");
    match answers.message().await?.and_then(|answer| answer.step) {
        Some(handshake_response::Step::Welcome(welcome)) => Ok(welcome),
        other => panic!("no welcome: {other:?}"),
    }
}

#[tokio::test]
async fn a_proof_that_was_overheard_is_worth_nothing() {
    let node = Node::start(member("n2", 2), &Double::new());
    let caller = Node::start(member("n1", 1), &Double::new());
    let calling = Calling::new(&caller.local.who, &caller.local.standing(), Some(&name("n2")));
    let secret = &caller.local.secret;
    let mut client = connect(&node).await;
    let mut overheard = None;
    let welcome = shake(&mut client, calling.hello(), |challenge| {
        let proof = calling.prove(secret, &challenge).expect("a challenge");
        overheard = Some(proof.clone());
        proof
    })
    .await
    .expect("the proof is right");
    assert_eq!(welcome.members.len(), 3);
    let overheard = overheard.expect("it was said");
    let refused = shake(&mut client, calling.hello(), |_| overheard).await.expect_err("said twice");
    assert_eq!(refused.code(), Code::Unauthenticated);
    // The callee's own proof, sent back to it, is none of a caller.
    let own = Proof { proof: welcome.proof };
    let refused = shake(&mut client, calling.hello(), |_| own).await.expect_err("its own");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = shake(&mut client, calling.hello(), |_| Proof::default()).await;
    assert_eq!(refused.expect_err("nothing").code(), Code::Unauthenticated);
}

/// Opens a stream with `token` and one message on it.
pub(super) async fn exchange(client: &mut Client, token: Option<&[u8]>) -> Result<Bytes, Status> {
    let frame = Frame { id: 7, message: Bytes::from_static(b"let me in") };
    let once = futures::stream::iter([ExchangeRequest { frames: vec![frame] }]);
    let mut request = Request::new(once);
    if let Some(token) = token {
        let token = MetadataValue::from_bytes(token);
        request.metadata_mut().insert_bin(TOKEN_HEADER, token);
    }
    let mut replies = client.exchange(request).await?.into_inner();
    let reply = replies.message().await?.expect("a reply");
    assert_eq!((reply.frames.len(), reply.frames[0].id), (1, 7));
    Ok(reply.frames[0].message.clone())
}

#[tokio::test]
async fn no_stream_is_served_without_a_handshake_of_its_own() {
    let receiver = Double::new();
    let node = Node::start(member("n2", 2), &receiver);
    let caller = Node::start(member("n1", 1), &Double::new());
    let mut client = connect(&node).await;
    for token in [None, Some(&b""[..]), Some(&[7; 32][..])] {
        let refused = exchange(&mut client, token).await.expect_err("no handshake");
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert_eq!(
            refused.message(),
            "only peers are served here: no handshake allowed this stream"
        );
    }
    assert!(receiver.received().is_empty());

    let calling = Calling::new(&caller.local.who, &caller.local.standing(), Some(&name("n2")));
    let secret = &caller.local.secret;
    let prove = |challenge| calling.prove(secret, &challenge).expect("a challenge");
    let welcome = shake(&mut client, calling.hello(), prove).await.expect("let in");
    let reply = exchange(&mut client, Some(&welcome.token)).await.expect("let in");
    assert_eq!(reply, "re: let me in");
    let refused = exchange(&mut client, Some(&welcome.token)).await.expect_err("used");
    assert_eq!(refused.code(), Code::Unauthenticated);

    // Who forms a cluster is told about it, if it is one of its members, and gets no stream.
    let forming = Standing::Forming(names(&["n1", "n2", "n3"]));
    let calling = Calling::new(&caller.local.who, &forming, Some(&name("n2")));
    let prove = |challenge| calling.prove(secret, &challenge).expect("a challenge");
    let welcome = shake(&mut client, calling.hello(), prove).await.expect("a member");
    assert_eq!((welcome.token.len(), welcome.members.len()), (0, 3));
}

#[tokio::test]
async fn what_is_no_handshake_is_refused() {
    let node = Node::start(member("n2", 2), &Double::new());
    let caller = Node::start(member("n1", 1), &Double::new());
    let mut client = connect(&node).await;
    let good = Calling::new(&caller.local.who, &caller.local.standing(), Some(&name("n2"))).hello();
    for broken in [
        Hello { version: 3, ..good.clone() },
        Hello { nonce: Bytes::from_static(b"short"), ..good.clone() },
        Hello { incarnation: Bytes::from_static(b"short"), ..good.clone() },
        Hello { cluster: Bytes::from_static(b"short"), ..good.clone() },
        Hello { node: "n".repeat(65), ..good.clone() },
        Hello { node: "n 1".into(), ..good.clone() },
        Hello { node: String::new(), ..good.clone() },
        Hello { to: "n".repeat(65), ..good.clone() },
        Hello { cluster: Bytes::new(), members: vec!["n2".into()], ..good.clone() },
        Hello { cluster: Bytes::new(), members: vec!["n1".into(); 2_000], ..good.clone() },
        // Who joins knows no name, who forms a cluster knows all of them.
        Hello { cluster: Bytes::new(), ..good.clone() },
        Hello {
            cluster: Bytes::new(),
            to: String::new(),
            members: vec!["n1".into()],
            ..good.clone()
        },
        Hello::default(),
    ] {
        let mut answers = client
            .handshake(futures::stream::iter([HandshakeRequest {
                step: Some(handshake_request::Step::Hello(broken.clone())),
            }]))
            .await
            .expect("the steps follow")
            .into_inner();
        let refused = answers.message().await.expect_err("it is none");
        assert_eq!(refused.code(), Code::InvalidArgument, "{broken:?}");
        assert_eq!(
            refused.message(),
            "the hello is not what this version speaks; run one version on all nodes"
        );
    }
    // Nobody who has not proven anything makes it set memory aside.
    let step = Some(handshake_request::Step::Hello(Hello { node: "n".repeat(200_000), ..good }));
    let steps = futures::stream::iter([HandshakeRequest { step }]);
    let mut answers = client.handshake(steps).await.expect("the steps follow").into_inner();
    let refused = answers.message().await.expect_err("it is large");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    // A proof before the hello, and nothing at all.
    for step in [Some(handshake_request::Step::Proof(Proof::default())), None] {
        let steps = futures::stream::iter([HandshakeRequest { step }]);
        let mut answers = client.handshake(steps).await.expect("the steps follow").into_inner();
        assert_eq!(answers.message().await.expect_err("none").code(), Code::InvalidArgument);
    }
}
