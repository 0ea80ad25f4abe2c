//! One node by itself: killed, paused, stopped under load. And the tests' own teeth: a node that forgets.

use crate::cluster::Setup;
use crate::nemesis;
use crate::story::{run, run_wrong};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_loses_nothing() {
    run("alone, kill -9", Setup::of(1), nemesis::kill_leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_serves_on() {
    run("alone, pauses", Setup::of(1), nemesis::pause_leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_while_it_starts_loses_nothing() {
    run("alone, restarts", Setup::of(1), nemesis::restart_storm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_stopped_loses_nothing_and_fails_no_repeated_operation() {
    let shared = run("alone, stops", Setup::of(1), nemesis::stop_one_after_the_other).await;
    assert_eq!(shared.failures(), Vec::<String>::new());
}

/// The control: what is kept in memory only is gone after kill -9, and the questions find that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_forgets_is_found() {
    let setup = Setup::of(1).with(&[("KVSTORE_STORAGE_ENGINE", "memory")]);
    let wrong = run_wrong("alone, in memory", setup, nemesis::kill_leader).await;
    println!("alone, in memory: {wrong}");
    assert!(wrong.contains("not linearizable"), "{wrong}");
}
