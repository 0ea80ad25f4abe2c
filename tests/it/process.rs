//! The built program as operators run it: kill -9, signals, a directory in use.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvstore::proto::v1::kv_service_client::KvServiceClient;
use tonic::Code;

use crate::node::{PATIENCE, get, put, text};

/// Rounds of kill -9; `KVSTORE_TEST_KILLS` for more.
const KILLS: u64 = 20;

/// And with the baseline engine.
const KILLS_OF_SLED: u64 = 3;

struct Program {
    child: Child,
    grpc: String,
}

impl Program {
    fn start(directory: &Path, settings: &[&str]) -> Self {
        Self::try_start(directory, settings)
            .unwrap_or_else(|output| panic!("it does not start: {output}"))
    }

    /// Starts it and waits until it is ready; what it wrote when it ended instead.
    fn try_start(directory: &Path, settings: &[&str]) -> Result<Self, String> {
        let set =
            ["server.port=0", "kvstore.grpc.port=0", "logging.format=json", "logging.file.name="];
        let set = set.iter().chain(settings).flat_map(|setting| ["--set", setting]);
        #[expect(clippy::zombie_processes, reason = "Drop kills and waits")]
        let mut child = Command::new(env!("CARGO_BIN_EXE_kvstore"))
            .arg("serve")
            .args(set)
            .current_dir(directory)
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program is built");
        let mut log = String::new();
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).expect("a pipe") == 0 {
                let output = child.wait_with_output().expect("it ended");
                return Err(format!("{log}{}", String::from_utf8_lossy(&output.stderr)));
            }
            if let Some(grpc) = ready(&line) {
                // What it logs from now on must not fill the pipe.
                std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
                return Ok(Self { child, grpc });
            }
            log.push_str(&line);
        }
    }

    async fn client(&self) -> KvServiceClient<tonic::transport::Channel> {
        KvServiceClient::connect(self.grpc.clone()).await.expect("it listens")
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
    }

    fn wait(mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The gRPC address in the line that says "ready".
fn ready(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let address = line["grpc"].as_str().filter(|_| line["message"] == "ready")?;
    Some(format!("http://{address}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_of_a_load_loses_no_acknowledged_write() {
    let rounds = std::env::var("KVSTORE_TEST_KILLS").ok().and_then(|text| text.parse().ok());
    // So few shards, and memtables and tables so small, that flushes and compactions are killed as well.
    let small = [
        "kvstore.hash-ring.shards=2",
        "kvstore.storage.memtable.max-size=64KB",
        "kvstore.storage.sstable.max-size=64KB",
    ];
    kill_in_rounds(&small, rounds.unwrap_or(KILLS)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_no_acknowledged_write_of_the_baseline_engine() {
    kill_in_rounds(&["kvstore.storage.engine=sled"], KILLS_OF_SLED).await;
}

async fn kill_in_rounds(settings: &[&str], rounds: u64) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let writers = 8;
    // For each writer the last number that was acknowledged; it writes one key, again and again, and a fresh one each time.
    let acknowledged: Arc<Vec<AtomicU64>> =
        Arc::new((0..writers).map(|_| AtomicU64::new(0)).collect());
    let mut total = 0;
    for round in 0..rounds {
        let program = Program::start(directory.path(), settings);
        check(&program, &acknowledged, round).await;
        let stop = Arc::new(AtomicBool::new(false));
        let before: u64 = acknowledged.iter().map(|last| last.load(Ordering::SeqCst)).sum();
        let load: Vec<_> = (0..writers)
            .map(|writer| {
                let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
                let url = program.grpc.clone();
                tokio::spawn(async move {
                    let Ok(mut client) = KvServiceClient::connect(url).await else { return };
                    while !stop.load(Ordering::SeqCst) {
                        let number = acknowledged[writer].load(Ordering::SeqCst) + 1;
                        let fresh = put(format!("{writer}/{number}"), padded(number));
                        let fresh = client.put(fresh).await;
                        let same = client.put(put(format!("{writer}"), padded(number))).await;
                        if fresh.is_err() || same.is_err() {
                            return;
                        }
                        acknowledged[writer].store(number, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        // Until enough was acknowledged, and a little more each round so that the moments differ.
        let wanted = before + 20 + round * 7 % 60;
        let deadline = Instant::now() + PATIENCE;
        while acknowledged.iter().map(|last| last.load(Ordering::SeqCst)).sum::<u64>() < wanted {
            assert!(Instant::now() < deadline, "the load does not go on in round {round}");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        program.signal("-9");
        stop.store(true, Ordering::SeqCst);
        for writer in load {
            writer.await.expect("no panic");
        }
        drop(program);
        total = acknowledged.iter().map(|last| last.load(Ordering::SeqCst)).sum();
    }
    let program = Program::start(directory.path(), settings);
    check(&program, &acknowledged, rounds).await;
    println!(
        "{settings:?}: {rounds} rounds of kill -9, {total} acknowledged pairs of writes, none lost"
    );
}

/// A number as JSON text of 2 KB.
fn padded(number: u64) -> String {
    format!("{number:<2000}")
}

async fn check(program: &Program, acknowledged: &[AtomicU64], round: u64) {
    let mut client = program.client().await;
    for (writer, last) in acknowledged.iter().enumerate() {
        let last = last.load(Ordering::SeqCst);
        if last == 0 {
            continue;
        }
        let same = client
            .get(get(writer.to_string()))
            .await
            .unwrap_or_else(|status| panic!("round {round}: {status}"));
        let stored: u64 = text(same.into_inner().content).trim().parse().expect("a number");
        assert!(
            stored == last || stored == last + 1,
            "round {round}: writer {writer} reads {stored}, {last} was acknowledged"
        );
        for number in last.saturating_sub(50).max(1)..=last {
            let found = client.get(get(format!("{writer}/{number}"))).await;
            let found = found.unwrap_or_else(|status| {
                panic!("round {round}: {writer}/{number} is lost: {status}")
            });
            assert_eq!(text(found.into_inner().content), padded(number));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_and_sigint_stop_it_with_code_0_and_nothing_is_lost() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (round, signal) in ["-TERM", "-INT"].into_iter().enumerate() {
        let program = Program::start(directory.path(), &[]);
        let mut client = program.client().await;
        client.put(put(format!("k{round}"), "1")).await.expect("stored");
        program.signal(signal);
        assert_eq!(program.wait().code(), Some(0), "{signal}");
    }
    let program = Program::start(directory.path(), &[]);
    let mut client = program.client().await;
    for key in ["k0", "k1"] {
        client.get(get(key)).await.expect("there");
    }
    assert_eq!(client.get(get("k2")).await.expect_err("never stored").code(), Code::NotFound);
}

#[test]
fn a_data_directory_serves_one_process_and_keeps_its_engine() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let first = Program::start(directory.path(), &[]);
    let second = Program::try_start(directory.path(), &[]).err().expect("the directory is in use");
    assert!(second.contains("in use"), "{second}");
    first.signal("-TERM");
    assert_eq!(first.wait().code(), Some(0));
    let other = ["kvstore.storage.engine=sled"];
    let other = Program::try_start(directory.path(), &other).err().expect("another engine");
    assert!(other.contains("set kvstore.storage.engine: lsm"), "{other}");
    std::fs::write(directory.path().join("data/identity.json"), "{}").expect("writable");
    let damaged = Program::try_start(directory.path(), &[]).err().expect("the identity is damaged");
    assert!(damaged.contains("identity.json is damaged"), "{damaged}");
}
