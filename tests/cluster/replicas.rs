//! Three nodes: killed, paused, stopped, cut off from each other.

use crate::cluster::{Cluster, Setup};
use crate::nemesis::{self, Cut};
use crate::story::{Scene, TURN, run};

/// A test for each fault.
macro_rules! three_nodes {
    ($($(#[$attribute:meta])* $name:ident: $setup:expr, $fault:expr;)*) => {$(
        $(#[$attribute])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            run(stringify!($name), $setup, $fault).await;
        }
    )*};
}

three_nodes! {
    a_leader_that_is_killed_loses_nothing: Setup::of(3), nemesis::kill_leader;
    a_follower_that_is_killed_stops_nobody: Setup::of(3).shards(1), nemesis::kill_follower;
    /// D1 of the fault cases: a majority's disks have everything that was acknowledged.
    nodes_that_are_killed_at_one_instant_lose_nothing: Setup::of(3), nemesis::kill_all;
    a_leader_that_stood_still_serves_nothing_old: Setup::of(3), nemesis::pause_leader;
    nodes_that_are_killed_at_random_lose_nothing: Setup::of(3), nemesis::restart_storm;
    a_node_that_missed_what_was_purged_gets_a_snapshot:
        Setup::of(3).shards(1).with(&nemesis::SMALL_LOG), nemesis::miss_the_log;
}

#[cfg(target_os = "linux")]
three_nodes! {
    /// C1 of the fault cases, both ways and one way.
    a_leader_that_is_cut_off_serves_nothing_old: Setup::of(3).proxied(),
        async |scene: &mut Scene<'_>| nemesis::cut_leader(scene, Cut::Both).await;
    a_leader_that_nobody_hears_is_replaced: Setup::of(3).proxied(),
        async |scene: &mut Scene<'_>| nemesis::cut_leader(scene, Cut::Outgoing).await;
    a_leader_that_hears_nobody_is_replaced: Setup::of(3).proxied(),
        async |scene: &mut Scene<'_>| nemesis::cut_leader(scene, Cut::Incoming).await;
    /// N1 of the fault cases.
    two_nodes_that_do_not_reach_each_other_stop_nobody: Setup::of(3).proxied(), nemesis::cut_triangle;
    a_slow_network_that_breaks_connections_stops_nobody: Setup::of(3).proxied().with(&nemesis::SLOW_NETWORK), nemesis::slow_network;
}

/// What an upgrade does, one node after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_stopped_one_after_the_other_fail_no_repeated_operation() {
    let shared = run("three, stops", Setup::of(3), nemesis::stop_one_after_the_other).await;
    assert_eq!(shared.failures(), Vec::<String>::new());
}

/// With its directory went what it has voted and acknowledged: the process says so and ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_directory_was_wiped_ends_with_what_to_do() {
    let _turn = TURN.lock().await;
    let mut cluster = Cluster::start(&Setup::of(3)).await;
    cluster.kill_node(0);
    cluster.nodes[0].wipe();
    cluster.start_node(0);
    let status = cluster.nodes[0].ended().await;
    let log = cluster.nodes[0].tail();
    assert_eq!(status.code(), Some(1), "{log}");
    let last = log.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("kvstore: ") && last.contains("was wiped or replaced; remove it"),
        "{log}"
    );
}
