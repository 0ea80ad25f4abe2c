//! Nodes that join a cluster which exists, and members that move. The list of members is a double.

use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::handshake::{Client, connect, exchange, shake};
use super::*;
use crate::proto::raft::{JoinRequest, JoinResponse};
use crate::raft::peers::handshake::Calling;

/// What the members of a cluster agree on, as if it were replicated: whoever asks is put on the list, and all who follow it learn of that at once.
struct List {
    state: Mutex<Admitted>,
    /// Who was put on it, in order.
    candidates: Mutex<Vec<Candidate>>,
    followers: Mutex<Vec<Arc<Local>>>,
}

impl List {
    /// The list of the members of `cluster`, who are at `addresses`.
    fn new(cluster: &Formed, addresses: &[SocketAddr]) -> Arc<Self> {
        let members = cluster.members.iter().zip(addresses);
        let members = members.map(|((name, it), port)| (name.clone(), (*it, port.to_string())));
        let state = Admitted { revision: 0, members: members.collect(), meta_replica: 0 };
        Arc::new(Self {
            state: Mutex::new(state),
            candidates: Mutex::default(),
            followers: Mutex::default(),
        })
    }

    /// From here on `node` follows the list, and lets nodes in.
    fn serve(self: &Arc<Self>, node: &Node) {
        self.followers.lock().push(Arc::clone(&node.local));
        node.service.admit_with(Arc::clone(self) as Arc<dyn Admits>);
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.candidates.lock().clone()
    }
}

impl Admits for List {
    fn admit(&self, candidate: Candidate) -> BoxFuture<'static, Result<Admitted, Refusal>> {
        self.candidates.lock().push(candidate.clone());
        let mut state = self.state.lock();
        let Candidate { node, incarnation, address, .. } = candidate;
        let known = state.members.insert(node.clone(), (incarnation, address.clone()));
        if known != Some((incarnation, address)) {
            state.revision += 1;
        }
        for local in &*self.followers.lock() {
            let Standing::Formed(mut formed) = local.standing() else { continue };
            formed.revision = state.revision;
            formed.members = state.members.iter().map(|(node, it)| (node.clone(), it.0)).collect();
            local.set_formed(formed);
            let address = |it: &str| it.parse().expect("an address");
            let all = state.members.iter().map(|(node, it)| (node.clone(), address(&it.1)));
            local.set_addresses(all.collect());
        }
        let number = node.0.trim_start_matches('n').parse().expect("a number");
        let admitted = Admitted { meta_replica: number, ..state.clone() };
        Box::pin(std::future::ready(Ok(admitted)))
    }
}

/// The founders n1 and n2 with incarnations 1 and 2.
fn founders() -> Formed {
    formed(&[("n1", 1), ("n2", 2)])
}

fn founder(name: &'static str, incarnation: u128) -> Setup {
    Setup { standing: Standing::Formed(founders()), ..member(name, incarnation) }
}

/// n3, which wants to be a member.
fn joiner() -> Setup {
    Setup { standing: Standing::Joining, ..member("n3", 3) }
}

fn seeds(ports: &[SocketAddr]) -> Vec<Endpoint> {
    ports.iter().map(|port| port.to_string().parse().expect("a loopback address")).collect()
}

fn about(node: &Node) -> About {
    let address = node.endpoint.to_string();
    About { address, weight: 200, zone: Some("rack-7".to_owned()) }
}

/// The node asks to be put on the list, as it is.
fn start_join(node: &Node, ports: &[SocketAddr]) -> JoinHandle<Result<Joined, Refusal>> {
    let (local, seeds, about) = (Arc::clone(&node.local), seeds(ports), about(node));
    let runtime = node.runtime.as_ref().expect("it runs");
    runtime.spawn(async move { join(&local, &seeds, &about).await })
}

async fn outcome(task: JoinHandle<Result<Joined, Refusal>>) -> Result<Joined, Refusal> {
    tokio::time::timeout(PATIENCE, task).await.expect("in time").expect("it lives")
}

/// Both founders, and their list.
fn cluster(ports: &[SocketAddr]) -> (Vec<Node>, Arc<List>) {
    let nodes = vec![
        Node::start_at(founder("n1", 1), ports[0]),
        Node::start_at(founder("n2", 2), ports[1]),
    ];
    let list = List::new(&founders(), ports);
    for node in &nodes {
        list.serve(node);
    }
    (nodes, list)
}

/// What somebody who is set up like `setup` hears.
async fn refusal(setup: Setup) -> Refusal {
    let ports = ports(3);
    let (_nodes, list) = cluster(&ports);
    let node = Node::start_at(setup, ports[2]);
    let refusal = outcome(start_join(&node, &ports[..2])).await.expect_err("it does not fit");
    assert_eq!(list.candidates(), []);
    refusal
}

#[tokio::test]
async fn a_node_joins_through_a_seed_that_is_down_at_first() {
    let ports = ports(3);
    let list = List::new(&founders(), &ports);
    let receiver = Double::new();
    let third = Node::start(joiner(), &receiver);
    let joining = start_join(&third, &ports[..2]);
    assert!(!joining.is_finished());
    let first = Node::start_at(founder("n1", 1), ports[0]);
    list.serve(&first);

    let joined = outcome(joining).await.expect("n1 lets it in");
    let Joined { formed, addresses, meta_replica, via } = joined;
    assert_eq!((formed.cluster, formed.revision), (founders().cluster, 1));
    assert_eq!(formed.members, three().members);
    assert_eq!((meta_replica, via), (3, name("n1")));
    let mut expected = seeds(&ports[..2]);
    expected.push(third.endpoint.clone());
    assert_eq!(addresses.values().cloned().collect::<Vec<_>>(), expected);
    let candidate = Candidate {
        node: name("n3"),
        incarnation: incarnation(3),
        address: third.endpoint.to_string(),
        weight: 200,
        zone: Some("rack-7".to_owned()),
    };
    assert_eq!(list.candidates(), [candidate]);

    // It is called as a member once it says that it is one.
    let why = first.refusal("n3").await;
    assert!(why.ends_with(": node n3 is about to join a cluster itself"), "{why}");
    third.local.set_formed(formed);
    assert_eq!(first.call_until_replied("n3", Lane::Control, "hello").await, "re: hello");
}

#[tokio::test]
async fn a_node_joins_through_a_seed_that_is_still_forming_its_cluster() {
    let ports = ports(3);
    let forming = Standing::Forming(names(&["n1", "n2"]));
    let first = Node::start_at(Setup { standing: forming, ..founder("n1", 1) }, ports[0]);
    let third = Node::start_at(joiner(), ports[2]);
    // It is among the seeds itself: all nodes may have the same ones.
    let joining = start_join(&third, &[ports[2], ports[0]]);
    first.refuses("has not formed its cluster yet").await;
    third.refuses("is about to join a cluster itself").await;
    assert!(!joining.is_finished());
    first.local.set_formed(founders());
    first.refuses("node n1 is starting").await;
    assert!(!joining.is_finished());
    List::new(&founders(), &ports).serve(&first);
    let joined = outcome(joining).await.expect("n1 lets it in");
    assert_eq!(joined.formed.members, three().members);
}

#[tokio::test]
async fn a_wrong_secret_joins_nothing_and_ends_nothing() {
    let ports = ports(3);
    let (nodes, list) = cluster(&ports);
    let stranger = Node::start_at(Setup { secret: "guessed", ..joiner() }, ports[2]);
    let strangers = start_join(&stranger, &ports[..2]);
    for node in &nodes {
        node.refuses("the cluster secrets differ").await;
    }
    assert!(!strangers.is_finished() && list.candidates().is_empty());
    strangers.abort();
    stranger.kill();
    let third = Node::start_at(joiner(), ports[2]);
    outcome(start_join(&third, &ports[..2])).await.expect("it knows the secret");
}

#[tokio::test]
async fn a_node_that_does_not_fit_ends_with_what_to_do() {
    let sixteen = refusal(Setup { shards: 16, ..joiner() }).await;
    assert_eq!(
        (sixteen.reason, sixteen.message.as_str()),
        (
            Reason::ShardsDiffer,
            "node n3 asks for 16 shards, this cluster has 4; empty its data directory and set kvstore.hash-ring.shards: 4"
        )
    );
    let wiped = refusal(Setup { name: "n2", incarnation: 9, ..joiner() }).await;
    assert_eq!(wiped.reason, Reason::AnotherIncarnation);
    assert_eq!(
        wiped.message,
        format!(
            "node n2 presents incarnation {} but this cluster knows it as {}: its data directory was wiped or replaced; remove it and add it under a new name",
            incarnation(9),
            incarnation(2)
        )
    );
    // It was a member, and is on no list any more.
    let removed = Formed { members: three().members, ..founders() };
    let removed = refusal(Setup { standing: Standing::Formed(removed), ..joiner() }).await;
    assert_eq!(removed.reason, Reason::NotAMember);
    assert_eq!(
        removed.message,
        "node n3 was removed from this cluster, or never joined it (members: n1 and n2); empty its data directory and start it with kvstore.cluster.join under a new name"
    );
}

#[tokio::test]
async fn a_node_that_crashed_before_it_could_note_it_joins_again_with_the_same_result() {
    let ports = ports(3);
    let (mut nodes, list) = cluster(&ports);
    let third = Node::start_at(joiner(), ports[2]);
    let first = outcome(start_join(&third, &ports[..1])).await.expect("n1 lets it in");
    third.kill();
    // Nor does it matter who is asked.
    nodes.remove(0).kill();
    let third = Node::start_at(joiner(), ports[2]);
    let again = outcome(start_join(&third, &ports[..2])).await.expect("n2 knows it");
    assert_eq!(again, Joined { via: name("n2"), ..first });
    assert_eq!(list.candidates().len(), 2);
    // Its name is taken from now on.
    third.kill();
    let wiped = Node::start_at(Setup { incarnation: 4, ..joiner() }, ports[2]);
    let refused = outcome(start_join(&wiped, &ports[..2])).await.expect_err("the name is taken");
    assert_eq!(refused.reason, Reason::AnotherIncarnation);
}

#[tokio::test]
async fn a_member_tells_where_it_is_now() {
    let ports = ports(3);
    let (mut nodes, list) = cluster(&ports);
    nodes.pop().expect("n2").kill();
    let receiver = Double::new();
    let moved = Node::start(founder("n2", 2), &receiver);
    // A seed that leads elsewhere is no reason to end; members that are known are asked first.
    let other = Formed::new([(name("n7"), incarnation(7))].into(), SHARDS);
    let elsewhere = Setup { standing: Standing::Formed(other), ..member("n7", 7) };
    let elsewhere = Node::start_at(elsewhere, ports[2]);
    moved.local.set_addresses([(name("n7"), elsewhere.endpoint.clone())].into());
    let told = outcome(start_join(&moved, &ports[..1])).await.expect("n1 takes it over");
    elsewhere.refuses("correct kvstore.cluster.members").await;
    assert_eq!((told.formed.members, told.via), (founders().members, name("n1")));
    assert_eq!(list.candidates()[0].address, moved.endpoint.to_string());
    let first = &nodes[0];
    assert_eq!(first.call_until_replied("n2", Lane::Control, "hello").await, "re: hello");
}

#[tokio::test]
async fn a_node_that_was_away_lets_in_who_came_meanwhile() {
    let receiver = Double::new();
    let away = Node::start(founder("n2", 2), &receiver);
    let newer =
        Formed { revision: 5, members: [(name("n1"), incarnation(9))].into(), ..founders() };
    let mut newer = Setup { standing: Standing::Formed(newer), ..member("n1", 9) };
    // n1 is another one by now, and n2 was removed; who was away cannot know that yet.
    let came = Node::start(newer.clone(), &Double::new());
    came.knows(&[&away]);
    let why = came.refusal("n2").await;
    assert!(why.contains("node n2 was removed from this cluster"), "{why}");
    let Standing::Formed(formed) = &mut newer.standing else { unreachable!("it is formed") };
    formed.members.insert(name("n2"), incarnation(2));
    let came = Node::start(newer.clone(), &Double::new());
    came.knows(&[&away]);
    assert_eq!(came.call_until_replied("n2", Lane::Control, "hello").await, "re: hello");
    // Once it knows that list, it goes by it; and ends what is not on the next one.
    let Standing::Formed(mut known) = newer.standing else { unreachable!("it is formed") };
    away.local.set_formed(known.clone());
    assert_eq!(came.call_until_replied("n2", Lane::Control, "hello").await, "re: hello");
    known.revision += 1;
    known.members.remove(&name("n1"));
    away.local.set_formed(known);
    let until = Instant::now() + PATIENCE;
    while came.call("n2", Lane::Control, "still here?", PATIENCE).await.is_ok() {
        assert!(Instant::now() < until, "it is still served");
    }
    let why = came.refusal("n2").await;
    assert!(why.contains("node n1 was removed from this cluster"), "{why}");
}

/// Calls Join by hand, with `token` if there is one.
async fn call_join(client: &mut Client, token: Option<&[u8]>) -> Result<JoinResponse, Status> {
    let address = "127.0.0.1:9".to_owned();
    let mut request = Request::new(JoinRequest { address, weight: 1, ..JoinRequest::default() });
    if let Some(token) = token {
        request.metadata_mut().insert_bin(TOKEN_HEADER, MetadataValue::from_bytes(token));
    }
    Ok(client.join(request).await?.into_inner())
}

#[tokio::test]
async fn who_joins_may_ask_for_that_once_and_for_nothing_else() {
    let ports = ports(2);
    let (nodes, list) = cluster(&ports);
    let receiver = Double::new();
    let (first, second) = (&nodes[0].local, &nodes[1]);
    second.service.receive_with(receiver);
    let mut client = connect(second).await;
    for token in [None, Some(&b""[..]), Some(&[7; 32][..])] {
        let refused = call_join(&mut client, token).await.expect_err("no handshake");
        assert_eq!(refused.code(), Code::Unauthenticated);
        let why = "only peers are served here: no handshake allowed this call";
        assert_eq!(refused.message(), why);
    }
    // Nobody who has not proven anything makes it set memory aside.
    let large = JoinRequest { zone: "z".repeat(200_000), ..JoinRequest::default() };
    let refused = client.join(Request::new(large)).await.expect_err("it is large");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");

    let third = Node::start(joiner(), &Double::new());
    let calling = Calling::new(&third.local.who, &third.local.standing(), None);
    let prove = |challenge| calling.prove(&third.local.secret, &challenge).expect("a challenge");
    let welcome = shake(&mut client, calling.hello(), prove).await.expect("the secret is right");
    let refused = exchange(&mut client, Some(&welcome.token)).await.expect_err("no stream");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = call_join(&mut client, Some(&welcome.token)).await.expect_err("it was tried");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(list.candidates(), []);

    let prove = |challenge| calling.prove(&third.local.secret, &challenge).expect("a challenge");
    let welcome = shake(&mut client, calling.hello(), prove).await.expect("the secret is right");
    let joined = call_join(&mut client, Some(&welcome.token)).await.expect("let in");
    assert_eq!((joined.members.len(), joined.revision, joined.meta_replica), (3, 1, 3));
    let refused = call_join(&mut client, Some(&welcome.token)).await.expect_err("used");
    assert_eq!(refused.code(), Code::Unauthenticated);

    // A member that knows only an address opens no stream either; one that knows whom it calls may do both.
    for (to, streams) in [(None, false), (Some(name("n2")), true)] {
        let mut tokens = Vec::new();
        for _ in 0..2 {
            let calling = Calling::new(&first.who, &first.standing(), to.as_ref());
            let prove = |challenge| calling.prove(&first.secret, &challenge).expect("a challenge");
            let welcome = shake(&mut client, calling.hello(), prove).await.expect("a member");
            tokens.push(welcome.token);
        }
        call_join(&mut client, Some(&tokens[0])).await.expect("allowed");
        let stream = exchange(&mut client, Some(&tokens[1])).await;
        assert_eq!(stream.is_ok(), streams, "{stream:?}");
    }
}
