//! Nodes that form a cluster, in any order.

use tokio::task::JoinHandle;

use super::*;

const THREE: [&str; 3] = ["n1", "n2", "n3"];

/// A node that is to form a cluster of `members`.
fn forming(name: &'static str, incarnation: u128, members: &[&str]) -> Setup {
    let standing = Standing::Forming(names(members));
    Setup { name, incarnation, secret: "s3cret", shards: SHARDS, standing, connection_age: None }
}

/// Starts a node that knows where all will be, and forms the cluster.
fn start(setup: Setup, ports: &[SocketAddr]) -> (Node, JoinHandle<Result<Formed, Refusal>>) {
    let position = THREE.iter().position(|one| *one == setup.name).expect("one of the three");
    let node = Node::start_at(setup, ports[position]);
    let addresses = THREE
        .iter()
        .zip(ports)
        .map(|(one, port)| (name(one), port.to_string().parse().expect("a loopback address")));
    node.local.set_addresses(addresses.collect());
    let local = Arc::clone(&node.local);
    let runtime = node.runtime.as_ref().expect("it runs");
    let task = runtime.spawn(async move {
        let formed = form(&local).await?;
        local.set_formed(formed.clone());
        Ok(formed)
    });
    (node, task)
}

async fn outcome(task: JoinHandle<Result<Formed, Refusal>>) -> Result<Formed, Refusal> {
    tokio::time::timeout(PATIENCE, task).await.expect("in time").expect("it lives")
}

#[tokio::test]
async fn nodes_that_start_in_any_order_form_one_cluster() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let ports = ports(3);
        let mut running = Vec::new();
        for (count, index) in order.into_iter().enumerate() {
            // None is formed while one is missing, however long the others have been there.
            for (_, task) in &running {
                let task: &JoinHandle<_> = task;
                assert!(!task.is_finished(), "formed with {count} of 3");
            }
            running.push(start(forming(THREE[index], index as u128 + 1, &THREE), &ports));
        }
        let mut nodes = Vec::new();
        for (node, task) in running {
            assert_eq!(outcome(task).await.expect("a cluster"), three());
            nodes.push(node);
        }
    }
}

#[tokio::test]
async fn a_member_that_comes_late_takes_over_what_was_decided() {
    let ports = ports(3);
    let (first, first_formed) = start(forming("n1", 1, &THREE), &ports);
    let (_second, second_formed) = start(forming("n2", 2, &THREE), &ports);
    let (third, third_formed) = start(forming("n3", 3, &THREE), &ports);
    assert_eq!(outcome(first_formed).await.expect("it decides"), three());
    assert_eq!(outcome(second_formed).await.expect("a cluster"), three());
    // The last one is killed before or after it knew; the one that decided is gone, too.
    third_formed.abort();
    third.kill();
    first.kill();
    let (_third, third_formed) = start(forming("n3", 3, &THREE), &ports);
    assert_eq!(outcome(third_formed).await.expect("n2 tells it"), three());
}

#[tokio::test]
async fn a_member_that_was_wiped_is_told_so() {
    let ports = ports(3);
    // Wiped before the cluster is formed: nothing is lost, it takes part as what it is now.
    let (third, waits) = start(forming("n3", 7, &THREE), &ports);
    waits.abort();
    third.kill();
    let (first, first_formed) = start(forming("n1", 1, &THREE), &ports);
    let (_second, second_formed) = start(forming("n2", 2, &THREE), &ports);
    let (third, third_formed) = start(forming("n3", 3, &THREE), &ports);
    for formed in [first_formed, second_formed, third_formed] {
        assert_eq!(outcome(formed).await.expect("a cluster"), three());
    }
    // Wiped after that: refused, whichever it is.
    for (node, wiped) in [(third, "n3"), (first, "n1")] {
        let known = node.local.who.incarnation;
        node.kill();
        let (_node, refused) = start(forming(wiped, 9, &THREE), &ports);
        let refusal = outcome(refused).await.expect_err("it was wiped");
        assert_eq!(
            refusal.message,
            format!(
                "node {wiped} presents incarnation {} but this cluster knows it as {known}: its data directory was wiped or replaced; remove it and add it under a new name",
                incarnation(9)
            )
        );
    }
}

#[tokio::test]
async fn nodes_that_disagree_about_the_cluster_are_told_both_sides() {
    let ports = ports(3);
    let (_first, _waits) = start(forming("n1", 1, &THREE), &ports);
    let (_second, refused) = start(forming("n2", 2, &["n1", "n2"]), &ports);
    let refusal = outcome(refused).await.expect_err("the lists differ");
    assert_eq!(
        refusal.message,
        "node n2 wants to form a cluster of n1 and n2 with 4 shards, node n1 one of n1, n2 and n3 with 4 shards; set the same kvstore.cluster.members and kvstore.hash-ring.shards on all nodes"
    );
}

#[tokio::test]
async fn a_node_that_is_not_on_the_list_of_a_formed_cluster_is_refused() {
    let ports = ports(3);
    let two = formed(&[("n1", 1), ("n2", 2)]);
    let first = Setup { standing: Standing::Formed(two), ..member("n1", 1) };
    let _first = Node::start_at(first, ports[0]);
    let (_third, refused) = start(forming("n3", 3, &THREE), &ports);
    let refusal = outcome(refused).await.expect_err("it is none of them");
    assert_eq!(
        refusal.message,
        "node n3 is not a member of this cluster (members: n1 and n2); empty its data directory and start it with kvstore.cluster.join to add it"
    );
}

#[tokio::test]
async fn a_wrong_secret_forms_nothing_and_ends_nothing() {
    let ports = ports(3);
    let (stranger, strangers) =
        start(Setup { secret: "guessed", ..forming("n3", 3, &THREE) }, &ports);
    let (_first, first) = start(forming("n1", 1, &THREE), &ports);
    let (_second, second) = start(forming("n2", 2, &THREE), &ports);
    let until = Instant::now() + Duration::from_millis(700);
    while Instant::now() < until {
        assert!(!first.is_finished() && !second.is_finished() && !strangers.is_finished());
        tokio::task::yield_now().await;
    }
    // Who knows it takes the place.
    strangers.abort();
    stranger.kill();
    let (_third, third) = start(forming("n3", 3, &THREE), &ports);
    for formed in [first, second, third] {
        assert_eq!(outcome(formed).await.expect("a cluster"), three());
    }
}

#[tokio::test]
async fn a_cluster_of_one_needs_nobody() {
    let ports = ports(3);
    let (_only, formed_alone) = start(forming("n1", 1, &["n1"]), &ports);
    assert_eq!(outcome(formed_alone).await.expect("itself"), formed(&[("n1", 1)]));
}
