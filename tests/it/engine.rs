//! `kvstore engine`: what the files of a node say while nobody serves them, and that looking changes nothing.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kvstore::proto::v1::DeleteRequest;

use crate::cli::{Ended, program, run};
use crate::node::{TestNode, put};

/// So small that a few hundred keys make tables in several levels.
pub(crate) const SMALL: [&str; 3] = [
    "kvstore.hash-ring.shards=2",
    "kvstore.storage.memtable.max-size=64KB",
    "kvstore.storage.sstable.max-size=64KB",
];

fn engine(args: &[&str]) -> Ended {
    run(program().arg("engine").args(args), b"")
}

/// Every file below `directory`: its path, size and time of change.
fn listing(directory: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let data = path.metadata().expect("it is there");
        found.push((path.clone(), data.len(), data.modified().expect("a time")));
        if path.is_dir() {
            found.extend(listing(&path));
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy(&path, &target) } else { drop(std::fs::copy(&path, target)) }
    }
}

/// A node that has stored something, stopped again; and the lines of a scan while it ran.
async fn stopped_node() -> (TestNode, Vec<String>) {
    let mut node = TestNode::with(&SMALL).await;
    let mut client = node.client().await;
    for number in 0..400 {
        let document = format!("{{\"number\": {number}, \"text\": \"{}\"}}", "x".repeat(500));
        client.put(put(format!("k/{number}"), document)).await.expect("stored");
    }
    for number in 0..40 {
        let key = format!("k/{}", number * 3);
        client.delete(DeleteRequest { key, ..DeleteRequest::default() }).await.expect("deleted");
    }
    drop(client);
    let data = node.data();
    let in_use = engine(&["verify", data.to_str().expect("text")]).failed(1);
    assert!(in_use.contains("in use by another process"), "{in_use}");
    let scan = run(program().args(["scan", "--endpoint", &node.grpc_url()]), b"").done();
    let mut lines: Vec<_> = scan.lines().map(str::to_owned).collect();
    lines.sort();
    node.stop().await;
    (node, lines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_of_a_stopped_node_are_checked_counted_and_printed_and_stay_as_they_are() {
    let (mut node, scanned) = stopped_node().await;
    let data = node.data();
    let data_text = data.to_str().expect("text");
    let part = data.join("lsm");
    let before = listing(&data);

    for directory in [data_text, part.to_str().expect("text")] {
        let sound = engine(&["verify", directory]).done();
        assert!(sound.contains("all sound"), "{sound}");
    }
    let verified = engine(&["verify", data_text, "-o", "json"]).json();
    assert_eq!((&verified["sound"], &verified["damage"]), (&true.into(), &serde_json::json!([])));
    assert!(verified["files"].as_u64() > Some(8), "{verified}");

    let stats = engine(&["stats", data_text, "-o", "json"]).json();
    let engines = stats["engines"].as_array().expect("a list");
    assert_eq!(engines.len(), 2);
    for of_engine in engines {
        assert_eq!(of_engine["newestWrite"], of_engine["flushedWrite"], "{of_engine}");
        let levels = of_engine["levels"].as_array().expect("a list");
        assert!(
            levels
                .iter()
                .any(|level| level["tombstones"].as_u64() > Some(0)
                    || level["level"].as_u64() > Some(0)),
            "{of_engine}"
        );
        assert!(of_engine["keysEstimate"].as_u64() > Some(100), "{of_engine}");
    }
    let text = engine(&["stats", data_text]).done();
    assert!(text.starts_with("ENGINE") && text.contains("shard-1"), "{text}");

    let dump = engine(&["dump", data_text]).done();
    let mut dumped: Vec<_> = dump.lines().map(str::to_owned).collect();
    dumped.sort();
    assert_eq!(dumped, scanned, "the files hold what the node served");
    let one = engine(&["dump", data_text, "--engine", "shard-0"]).done();
    assert!((1..dumped.len()).contains(&one.lines().count()));
    let raw = engine(&["dump", data_text, "--raw"]).done();
    assert!(raw.lines().count() > dumped.len(), "also tombstones and bookkeeping");
    for line in raw.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("an object");
        assert!(line["write"].is_u64() && line["key"].is_string(), "{line}");
    }

    assert_eq!(listing(&data), before, "looking changes nothing");
    node.open().await;
    let scan = run(program().args(["scan", "--endpoint", &node.grpc_url()]), b"").done();
    assert_eq!(scan.lines().count(), scanned.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_byte_in_any_kind_of_file_is_found_with_the_files_name() {
    let (node, _) = stopped_node().await;
    let verified = engine(&["verify", node.data().to_str().expect("text"), "-o", "json"]).json();
    let remarks = verified["remarks"].to_string();
    // What a compaction has left is in no use.
    let is_used = |path: &PathBuf| !remarks.contains(&*path.to_string_lossy());
    let files = listing(&node.data().join("lsm")).into_iter().map(|file| file.0);
    let files: Vec<_> = files.filter(is_used).collect();
    let kinds = ["catalogue", "CURRENT", ".manifest", ".sst", ".wal"];
    for kind in kinds {
        let victim = files.iter().find(|path| path.to_string_lossy().ends_with(kind));
        let victim = victim.unwrap_or_else(|| panic!("there is no {kind} in {files:?}"));
        let name = victim.strip_prefix(node.data()).expect("it lies there");
        // All of them in what is in use for certain: behind a manifest and a log is reserved space.
        let size = victim.metadata().expect("it is there").len();
        for place in if matches!(kind, ".manifest" | ".wal") { [9, 40] } else { [9, size - 1] } {
            let scratch = tempfile::tempdir().expect("a temporary directory");
            copy(&node.data(), scratch.path());
            let file = scratch.path().join(name);
            let mut content = std::fs::read(&file).expect("readable");
            let place = usize::try_from(place).expect("small");
            content[place] ^= 1;
            std::fs::write(&file, content).expect("writable");
            let before = listing(scratch.path());
            let ended = engine(&["verify", scratch.path().to_str().expect("text")]);
            let what = format!("{} at {place}", file.display());
            assert_eq!(ended.code, 1, "{what}: {}", String::from_utf8_lossy(&ended.out));
            assert!(ended.err.contains(&*file.to_string_lossy()), "{what}: {}", ended.err);
            assert!(ended.err.contains("kvstore: CORRUPTION: "), "{what}: {}", ended.err);
            assert_eq!(listing(scratch.path()), before, "{what}: looking changes nothing");
        }
    }
    let scratch = tempfile::tempdir().expect("a temporary directory");
    copy(&node.data(), scratch.path());
    let table = files.iter().find(|path| path.extension().is_some_and(|end| end == "sst"));
    let name = table.expect("a table").strip_prefix(node.data()).expect("it lies there");
    std::fs::remove_file(scratch.path().join(name)).expect("removable");
    let ended = engine(&["verify", scratch.path().to_str().expect("text")]);
    assert!(ended.code == 1 && ended.err.contains("is missing"), "{}", ended.err);
}

#[test]
fn a_directory_without_an_engine_is_refused_and_stays_empty() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_str().expect("text");
    for command in ["verify", "stats", "dump"] {
        let refused = engine(&[command, path]).failed(1);
        assert!(refused.contains("holds no lsm environment"), "{refused}");
    }
    assert_eq!(listing(directory.path()), []);
}
