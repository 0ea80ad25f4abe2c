//! The load generator against a node: every way of travelling, every workload, and what it does when answers are wrong.

use clap::Parser;
use kvstore::bench::{self, Error};

use crate::node::{TestNode, get, put};

#[derive(Parser)]
#[command(args_override_self = true)]
struct Program {
    #[command(flatten)]
    args: bench::Args,
}

/// Runs a short bench against `node`.
async fn run(node: &TestNode, words: &[&str]) -> Result<(), Error> {
    let (grpc, http) = (node.grpc_url(), node.url(""));
    let short = ["--keys", "500", "--duration", "60ms", "--rounds", "2", "--warmup", "10ms"];
    let place = ["--endpoint", grpc.as_str(), "--http-endpoint", http.as_str()];
    let all = ["bench"].iter().chain(&place).chain(&short).chain(words);
    let args = Program::try_parse_from(all).expect("legal").args;
    let measure = move || bench::run(&args, &mut Vec::new());
    tokio::task::spawn_blocking(measure).await.expect("it does not panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_workload_runs_without_errors_over_every_transport() {
    let node = TestNode::start().await;
    let workloads =
        ["get", "put", "range", "ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d", "ycsb-e", "ycsb-f"];
    for transport in ["unary", "session", "rest"] {
        for workload in workloads {
            let words = ["--transport", transport, "--workload", workload, "--in-flight", "8"];
            let outcome = run(&node, &words).await;
            assert!(outcome.is_ok(), "{transport} {workload}: {outcome:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_echo_open_loops_threads_and_conditions_run_too() {
    let node = TestNode::start().await;
    for words in [
        &["--echo", "--output", "json"][..],
        &["--echo", "--transport", "session", "--workload", "ycsb-f", "--if-version"],
        &["--rate", "2000", "--transport", "unary"],
        &["--rate", "2000", "--transport", "session", "--connections", "2", "--threads", "2"],
        &["--rate", "500", "--transport", "rest", "--in-flight", "4", "--threads", "2"],
        &["--value-size", "20KB", "--transport", "session", "--workload", "ycsb-a", "--keys", "50"],
        &["--value-size", "1", "--key-size", "9", "--distribution", "sequential"],
    ] {
        let outcome = run(&node, words).await;
        assert!(outcome.is_ok(), "{words:?}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_and_wrong_answers_are_errors_and_fail_the_run() {
    let node = TestNode::start().await;
    for transport in ["unary", "session", "rest"] {
        // Nobody has stored these keys.
        let missing =
            ["--transport", transport, "--no-preload", "--key-size", "20", "--warmup", "0s"];
        let error = run(&node, &missing).await.expect_err("the keys are missing");
        assert!(matches!(error, Error::TooManyErrors { errors, max: 0 } if errors > 0), "{error}");
        let allowed = [&missing[..], &["--errors-max", "100000000"]].concat();
        assert!(run(&node, &allowed).await.is_ok(), "{transport}");
        // These keys have values of another size.
        let other = ["--transport", transport, "--value-size", "60", "--workload", "put"];
        run(&node, &other).await.expect("stored");
        let wrong = ["--transport", transport, "--no-preload", "--value-size", "61"];
        let error = run(&node, &wrong).await.expect_err("the values are wrong");
        assert!(matches!(error, Error::TooManyErrors { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preload_leaves_other_keys_alone() {
    let node = TestNode::start().await;
    let mut client = node.client().await;
    client.put(put("mine", "1")).await.expect("stored");
    run(&node, &["--workload", "put", "--key-size", "9"]).await.expect("no errors");
    client.get(get("mine")).await.expect("still there");
    client.get(get("bench0499")).await.expect("the last one");
    client.get(get("bench0500")).await.expect_err("one more than asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_or_takes_less_is_told_before_the_load() {
    let node = TestNode::with(&["kvstore.http2.max-concurrent-streams=5"]).await;
    let error = run(&node, &["--in-flight", "6"]).await.expect_err("too many for one connection");
    assert!(error.is_usage() && error.to_string().contains("more --connections"), "{error}");
    run(&node, &["--in-flight", "6", "--connections", "2"]).await.expect("three for each");
    let nobody = ["--endpoint", "127.0.0.1:1", "--no-preload"];
    let args = Program::try_parse_from(["bench"].iter().chain(&nobody)).expect("legal").args;
    let measure = move || bench::run(&args, &mut Vec::new());
    let error = tokio::task::spawn_blocking(measure).await.expect("it does not panic");
    assert!(error.expect_err("nobody listens").to_string().contains("cannot connect"));
}

#[test]
fn one_command_starts_a_server_measures_it_and_stops_it() {
    let words = ["bench", "--self", "--keys", "500", "--duration", "100ms", "--warmup", "0s"];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kvstore"))
        .args(words)
        .args(["--echo", "--rounds", "1", "--output", "json", "--seed", "5"])
        .env_clear()
        .output()
        .expect("the program is built");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON alone");
    assert_eq!(report["seed"], 5);
    assert!(report["product"]["operations"].as_u64().is_some_and(|count| count > 0), "{report}");
    assert!(report["ratio"]["rate"]["of_medians"].is_number(), "{report}");
    assert!(report["product"]["server_cpu_us"]["median"].is_number(), "{report}");
}

#[test]
fn a_wrong_command_line_is_told_apart_from_a_failed_run() {
    let run = |words: &[&str]| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_kvstore"));
        program.arg("bench").args(words).output().expect("the program is built")
    };
    let usage = run(&["--transport", "rest", "--echo"]);
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
    let failed = run(&["--endpoint", "127.0.0.1:1"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
}
