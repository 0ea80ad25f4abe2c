//! The command line as people and scripts use it: the built program against a node.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::node::TestNode;

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Ended {
    /// What a command that did its work printed.
    pub(crate) fn done(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""));
        String::from_utf8(self.out).expect("text")
    }

    pub(crate) fn json(self) -> Value {
        let out = self.done();
        assert_eq!(out.lines().count(), 1, "{out}");
        serde_json::from_str(&out).expect("one object")
    }

    /// The one line of a command that failed with `code` and printed nothing.
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!((self.code, self.out.as_slice()), (code, &b""[..]), "{}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        assert!(self.err.starts_with("kvstore: "), "{}", self.err);
        self.err
    }
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstore"));
    command.env_clear();
    command
}

/// Runs `command` with `input` on its standard input.
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Ended {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("the program is built");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    // On its own, for the program may fill its output before it has read all. It may also not want all of it.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    let _ = writer.join().expect("no panic");
    Ended {
        code: output.status.code().expect("no signal"),
        out: output.stdout,
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

/// Runs a client's command against `node`.
pub(crate) fn kvstore(node: &TestNode, args: &[&str], input: &[u8]) -> Ended {
    run(program().args(args).env("KVSTORE_ENDPOINTS", node.grpc_url()), input)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_goes_in_as_argument_pipe_or_file_and_comes_back_byte_for_byte() {
    let node = TestNode::start().await;
    let cli = |args: &[&str], input: &[u8]| kvstore(&node, args, input);
    assert!(cli(&["put", "a", r#"{ "x":1.0 }"#], b"").done().starts_with("version "));
    assert_eq!(cli(&["get", "a"], b"").done(), r#"{ "x":1.0 }"#);
    assert_eq!(cli(&["put", "n", "-5"], b"").code, 0, "a negative number is no option");

    cli(&["put", "piped", "-"], b"[1,\n2]\n").done();
    assert_eq!(cli(&["get", "piped"], b"").out, b"[1,\n2]\n");

    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("bytes");
    std::fs::write(&file, b"\x00\xff\n").expect("writable");
    let argument = format!("@{}", file.display());
    cli(&["put", "bytes", &argument, "--raw"], b"").done();
    assert_eq!(cli(&["get", "bytes"], b"").out, b"\x00\xff\n");
    assert!(
        cli(&["put", "bytes", &argument], b"").failed(1).contains("not UTF-8; bytes need --raw")
    );
    let missing = cli(&["put", "k", "@/no/such/file"], b"").failed(1);
    assert!(missing.contains("cannot read /no/such/file"), "{missing}");

    let object = cli(&["get", "piped", "--output", "json"], b"").json();
    assert_eq!((&object["key"], &object["text"]), (&"piped".into(), &"[1,\n2]\n".into()));
    let object = cli(&["get", "a", "--output", "json"], b"").json();
    assert_eq!(object["value"]["x"], 1.0);
    assert!(object["version"].is_u64() && object.get("ttl").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_key_is_exit_code_3_and_prints_nothing() {
    let node = TestNode::start().await;
    let missing = kvstore(&node, &["get", "no\nsuch"], b"").failed(3);
    assert_eq!(missing, "kvstore: KEY_NOT_FOUND: there is no key \"no\\nsuch\"\n");
    kvstore(&node, &["put", "k", "1"], b"").done();
    assert_eq!(kvstore(&node, &["delete", "k"], b"").done(), "deleted\n");
    assert_eq!(kvstore(&node, &["delete", "k"], b"").done(), "there was no such key\n");
    let object = kvstore(&node, &["delete", "k", "-o", "json"], b"").json();
    assert_eq!(object["deleted"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_lifetimes_and_request_ids_reach_the_node() {
    let node = TestNode::start().await;
    let cli = |args: &[&str]| kvstore(&node, args, b"");
    let version =
        cli(&["put", "k", "1", "--if-version", "0", "-o", "json"]).json()["version"].clone();
    let refused = cli(&["put", "k", "2", "--if-version", "0"]).failed(1);
    assert!(refused.starts_with("kvstore: VERSION_MISMATCH: "), "{refused}");
    cli(&["put", "k", "2", "--if-version", &version.to_string(), "--ttl", "2m"]).done();
    assert_eq!(cli(&["get", "k", "-o", "json"]).json()["ttl"], 120);

    let first = cli(&["put", "r", "1", "--request-id", "id-1"]).done();
    cli(&["put", "r", "2"]).done();
    assert_eq!(cli(&["put", "r", "1", "--request-id", "id-1"]).done(), first);
    assert_eq!(cli(&["get", "r"]).done(), "2");
    let refused = cli(&["delete", "r", "--if-version", "999"]).failed(1);
    assert!(refused.contains("VERSION_MISMATCH"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_not_json_is_refused_with_the_way_out() {
    let node = TestNode::start().await;
    let refused = kvstore(&node, &["put", "k", "hello"], b"").failed(1);
    assert!(refused.starts_with("kvstore: INVALID_JSON: the value is not JSON"), "{refused}");
    assert!(refused.contains(r#"'"hello"'"#) && refused.contains("--raw"), "{refused}");
    assert!(!refused.contains("/api/"), "{refused}");
    kvstore(&node, &["put", "k", "hello", "--raw"], b"").done();
    assert_eq!(kvstore(&node, &["get", "k"], b"").done(), "hello");
    let empty = kvstore(&node, &["put", "", "1"], b"").failed(1);
    assert!(empty.contains("INVALID_KEY"), "{empty}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_is_a_page_and_a_scan_is_everything() {
    let node = TestNode::start().await;
    let cli = |args: &[&str]| kvstore(&node, args, b"");
    for key in ["a/1", "a/2", "a/3", "b\t"] {
        cli(&["put", key, "{\"x\":\n1}"]).done();
    }
    let all = "a/1\t{\"x\": 1}\na/2\t{\"x\": 1}\na/3\t{\"x\": 1}\nb\\t\t{\"x\": 1}\n";
    assert_eq!(cli(&["range"]).done(), all);
    assert_eq!(cli(&["scan", "--output", "text"]).done(), all);
    assert_eq!(
        cli(&["range", "--keys-only", "--reverse", "--prefix", "a/"]).done(),
        "a/3\na/2\na/1\n"
    );
    assert_eq!(cli(&["range", "--keys-only", "--start", "a/2", "--end", "a/3"]).done(), "a/2\n");
    assert_eq!(cli(&["scan", "--limit", "1", "--keys-only", "-o", "text"]).done(), "a/1\n");

    let page = cli(&["range", "--keys-only", "--limit", "2"]);
    let token = page.err.trim().rsplit(' ').next().expect("a token").to_owned();
    assert!(page.err.starts_with("kvstore: more follow: --page-token "), "{}", page.err);
    assert_eq!((page.code, page.out.as_slice()), (0, &b"a/1\na/2\n"[..]));
    let next = cli(&["range", "--keys-only", "--limit", "2", "--page-token", &token, "-o", "json"]);
    let next = next.json();
    assert_eq!(next["items"][0]["key"], "a/3");
    assert_eq!(next["nextPageToken"], "");
    let refused = cli(&["range", "--start", "b", "--end", "a"]).failed(1);
    assert!(refused.contains("INVALID_RANGE"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_ends_a_scan_quietly() {
    let node = TestNode::start().await;
    let value = format!("\"{}\"", "x".repeat(100_000));
    for key in 0..20 {
        kvstore(&node, &["put", &key.to_string(), "-"], value.as_bytes()).done();
    }
    let mut child = program()
        .args(["scan", "--endpoint", &node.grpc_url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program is built");
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    out.read_line(&mut line).expect("a line");
    drop(out);
    let ended = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    assert_eq!(ended.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_see_nodes_and_shards_and_let_them_work() {
    let node = TestNode::start().await;
    let cli = |args: &[&str]| kvstore(&node, args, b"");
    cli(&["put", "k", "1"]).done();
    let counts = cli(&["stats", "-o", "json"]).json();
    assert_eq!((&counts["keys"], &counts["operations"]["put"]), (&1.into(), &1.into()));
    assert_eq!(counts["shards"].as_array().map(Vec::len), Some(16));
    assert!(cli(&["stats"]).done().contains("SHARD  KEYS"));
    let status = cli(&["status", "-o", "json"]).json();
    assert_eq!((&status["ready"], &status["engine"]), (&true.into(), &"lsm".into()));
    let status = cli(&["status"]).done();
    let writes = status.lines().find(|line| line.starts_with("takes writes "));
    assert!(writes.is_some_and(|line| line.ends_with(" yes")), "{status}");
    assert_eq!(cli(&["node", "list", "-o", "json"]).json()["nodes"][0]["id"], "node1");
    assert!(cli(&["node", "list"]).done().starts_with("NODE   ADDRESS"));
    let shards = cli(&["shard", "list", "-o", "json"]).json();
    assert_eq!(shards["shards"][15]["leader"], "node1");
    assert_eq!(cli(&["shard", "list"]).done().lines().count(), 17);
    assert_eq!(cli(&["compact"]).done(), "compacted 16 shards\n");
    assert_eq!(cli(&["compact", "--shard", "3"]).done(), "compacted 1 shard\n");
    assert_eq!(cli(&["flush"]).done(), "flushed\n");
    for alone in [
        &["node", "add", "n2", "127.0.0.1:1"][..],
        &["node", "remove", "n2"],
        &["node", "remove", "n2", "--force"],
        &["node", "drain", "n2"],
        &["node", "replace", "n1", "n2"],
        &["shard", "move-leader", "0", "n2"],
        &["cluster", "settings"],
        &["cluster", "settings", "--replication-factor", "5", "--replace-after", "30m"],
        &["cluster", "settings", "--moves", "4", "--output", "json"],
        &["cluster", "settings", "--replace-after", "0"],
    ] {
        let refused = cli(alone).failed(1);
        let why = "kvstore: FAILED_PRECONDITION: this node runs alone; ";
        assert!(refused.starts_with(why), "{alone:?}: {refused}");
    }
    for (wrong, named) in [
        (&["node", "add", "n 2", "127.0.0.1:1"][..], "A-Z a-z 0-9 . _ -"),
        (&["node", "add", "n2", "127.0.0.1"], "host:port"),
        (&["node", "replace", "n1", "n1"], "another node"),
        (&["cluster", "settings", "--replication-factor", "0"], "1 to 9"),
        (&["cluster", "settings", "--moves", "0"], "1 to 1000"),
    ] {
        let refused = cli(wrong).failed(1);
        assert!(refused.starts_with("kvstore: INVALID_REQUEST: "), "{wrong:?}: {refused}");
        assert!(refused.contains(named), "{wrong:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_is_listed_as_the_only_one() {
    let node = TestNode::start().await;
    let cli = |args: &[&str]| kvstore(&node, args, b"");
    let list = cli(&["node", "list"]).done();
    let heading =
        ["NODE", "ADDRESS", "STATE", "REPLICAS", "LEADS", "MOVING", "WEIGHT", "META", "ZONE"];
    let mut lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().as_deref(), Some(&heading[..]));
    let address = node.grpc_url().replace("http://", "");
    let row = ["node1", &address, "up", "16", "16", "0", "100", "-", "-"];
    assert_eq!(lines.next().as_deref(), Some(&row[..]));
    let listed = cli(&["node", "list", "-o", "json"]).json()["nodes"][0].clone();
    assert_eq!((&listed["state"], &listed["detail"]), (&"up".into(), &"".into()));
    assert_eq!((&listed["moving"], &listed["metaVoter"]), (&0.into(), &false.into()));
    let shard = cli(&["shard", "list", "-o", "json"]).json()["shards"][15].clone();
    let own = serde_json::json!(["node1"]);
    assert_eq!((&shard["voters"], &shard["target"], &shard["replicas"]), (&own, &own, &own));
    assert_eq!((&shard["learners"], &shard["change"]), (&serde_json::json!([]), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_an_exit_code_and_a_reason() {
    let mut node = TestNode::start().await;
    assert_eq!(kvstore(&node, &["health"], b"").done(), "node1 is ready\n");
    assert_eq!(kvstore(&node, &["health", "-o", "json"], b"").json()["ready"], true);
    let url = node.grpc_url();
    node.stop().await;
    let down = run(program().args(["health", "--endpoint", &url]), b"").failed(1);
    assert!(
        down.starts_with("kvstore: UNAVAILABLE: cannot connect to http://127.0.0.1:"),
        "{down}"
    );
    node.open().await;
    // Every node that is named has to be ready, and each is told.
    let both =
        run(program().args(["health", "--endpoint", &url, "--endpoint", &node.grpc_url()]), b"");
    assert_eq!((both.code, both.out.as_slice()), (1, &b"node1 is ready\n"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_endpoint_is_taken_and_the_environment_names_options() {
    let node = TestNode::start().await;
    let dead = "http://127.0.0.1:1";
    let live = node.grpc_url();
    run(program().args(["put", "k", "1", "--endpoint", dead, "--endpoint", &live]), b"").done();
    let endpoints = format!("{dead},{live}");
    let from_environment = |output: &str, timeout: &str| {
        run(
            program()
                .args(["get", "k"])
                .env("KVSTORE_ENDPOINTS", &endpoints)
                .env("KVSTORE_OUTPUT", output)
                .env("KVSTORE_TIMEOUT", timeout),
            b"",
        )
    };
    assert_eq!(from_environment("json", "10s").json()["value"], 1);
    assert_eq!(from_environment("", "").done(), "1", "empty is absent");
    assert_eq!(from_environment("xml", "").code, 2);
    let nobody = run(program().args(["get", "k", "--endpoint", dead, "--timeout", "50ms"]), b"");
    assert!(nobody.failed(1).contains("UNAVAILABLE: cannot connect to http://127.0.0.1:1: "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_made_checked_and_taken_back() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let setting = format!("kvstore.backup.dir={}", directory.path().display());
    let node = TestNode::with(&[&setting]).await;
    kvstore(&node, &["put", "k", "1"], b"").done();
    let made = kvstore(&node, &["backup", "create", "--name", "one", "-o", "json"], b"").json();
    let path = made["path"].as_str().expect("a path").to_owned();
    assert_eq!(made["keys"], 1);
    let again = kvstore(&node, &["backup", "create", "--name", "one"], b"").failed(1);
    assert!(again.contains("FAILED_PRECONDITION"), "{again}");
    let offline = |args: &[&str]| run(program().args(args).current_dir(directory.path()), b"");
    assert!(offline(&["backup", "verify", &path]).done().contains("is whole: "));
    let restore = ["backup", "restore", &path, "--set", "kvstore.storage.data-dir=restored"];
    assert!(offline(&restore).done().starts_with("restored into restored: "));
    assert!(offline(&restore).failed(1).contains("is not empty"));

    std::fs::write(Path::new(&path).join("backup.json"), "{}").expect("writable");
    let damaged = offline(&["backup", "verify", &path]).failed(1);
    assert!(
        damaged.starts_with("kvstore: CORRUPTION: ") && damaged.contains("backup.json"),
        "{damaged}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_tells_each_value_with_its_origin_and_no_secret() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("application.yml"), "kvstore:\n  node: { id: n7 }\n")
        .expect("writable");
    let config = |args: &[&str]| {
        run(
            program()
                .args(["config"])
                .args(args)
                .current_dir(directory.path())
                .env("KVSTORE_CLUSTER_SECRET", "hush"),
            b"",
        )
    };
    let json = config(&["--set", "server.port=1234", "-o", "json"]).json();
    let value = |key: &str| {
        let values = json["values"].as_array().expect("an array");
        let found = values.iter().find(|value| value["key"] == key).expect("the key");
        (found["value"].as_str().expect("text"), found["origin"].as_str().expect("text"))
    };
    assert_eq!(value("server.port"), ("1234", "--set"));
    assert_eq!(value("kvstore.node.id"), ("n7", "application.yml:2"));
    assert_eq!(value("kvstore.cluster.secret"), ("******", "environment KVSTORE_CLUSTER_SECRET"));
    assert_eq!(value("kvstore.grpc.port"), ("9090", "default"));
    let text = config(&[]).done();
    assert!(!text.contains("hush") && text.contains("application.yml:2"), "{text}");

    let node = TestNode::with(&["kvstore.cluster.secret=hush"]).await;
    let running = config(&["--endpoint", &node.grpc_url()]).done();
    assert!(!running.contains("hush") && running.contains("******"), "{running}");
    let here =
        run(program().args(["config"]).env("KVSTORE_ENDPOINTS", node.grpc_url()), b"").done();
    assert!(!here.contains("******"), "it is asked only when it is named: {here}");
}

#[test]
fn a_configuration_is_refused_with_all_that_is_wrong() {
    for command in ["serve", "config"] {
        let args =
            [command, "--set", "kvstore.grpc.prot=1", "--set", "server.port=x", "--set", "y"];
        let ended = run(program().args(args), b"");
        assert_eq!((ended.code, ended.out.as_slice()), (1, &b""[..]));
        let lines: Vec<&str> = ended.err.lines().collect();
        assert_eq!(lines.len(), 3, "{}", ended.err);
        assert!(lines.iter().all(|line| line.starts_with("kvstore: --set: ")), "{}", ended.err);
        assert!(ended.err.contains("did you mean kvstore.grpc.port?"), "{}", ended.err);
        assert!(ended.err.contains("from 0 to 65535"), "{}", ended.err);
    }
    let missing = run(program().args(["--config", "no.yml"]), b"").failed(1);
    assert!(missing.contains("no.yml: cannot be read"), "{missing}");
}

#[test]
fn wrong_usage_is_exit_code_2_and_prints_nothing() {
    for args in [
        &["no-such-command"][..],
        &["get"],
        &["put", "k"],
        &["put", "k", "1", "--ttl", "0"],
        &["put", "k", "1", "--if-version", "-1"],
        &["get", "k", "--endpoint", "nowhere"],
        &["get", "k", "--timeout", "0"],
        &["get", "k", "--output", "xml"],
        &["shard", "move-leader", "x", "n1"],
        &["node", "replace", "n1"],
        &["cluster", "settings", "--replace-after", "1.5h"],
        &["cluster", "settings", "--moves", "-1"],
        &["config", "--endpoint", "127.0.0.1:1", "--set", "server.port=1"],
        &["--set", "server.port=0", "get", "k"],
        &["serve", "server.port=0"],
        &["completions", "nosuchshell"],
    ] {
        let ended = run(program().args(args), b"");
        assert_eq!((ended.code, ended.out.as_slice()), (2, &b""[..]), "{args:?}: {}", ended.err);
        assert!(ended.err.starts_with("error: "), "{args:?}: {}", ended.err);
        assert!(!ended.err.contains('\u{1b}'), "no colours in a pipe: {args:?}");
    }
}

#[test]
fn the_program_tells_its_version_help_and_completions() {
    let version = run(program().arg("--version"), b"").done();
    assert!(
        version.starts_with(concat!("kvstore ", env!("CARGO_PKG_VERSION"), " (commit ")),
        "{version}"
    );
    let help = run(program().arg("--help"), b"").done();
    for word in ["serve", "backup", "scan", "Exit codes"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(program().args(["completions", shell]), b"").done();
        for word in ["move-leader", "replace", "settings", "replication-factor"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        // Where there is no bash nobody sources its completions.
        if shell == "bash" && Command::new("bash").arg("--version").output().is_ok() {
            let checked = run(Command::new("bash").arg("-n"), script.as_bytes());
            assert_eq!((checked.code, checked.err.as_str()), (0, ""));
        }
    }
}

#[test]
fn a_node_is_served_with_and_without_the_word() {
    for args in [&[][..], &["serve"], &["--set", "kvstore.node.id=other"]] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut child = program()
            .args(args)
            .current_dir(directory.path())
            .env("SERVER_PORT", "0")
            .env("KVSTORE_GRPC_PORT", "0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program is built");
        let mut log = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        while !line.contains(" ready ") {
            line.clear();
            assert_ne!(log.read_line(&mut line).expect("a line"), 0, "{args:?}: it ended");
        }
        let stopped = Command::new("kill").arg(child.id().to_string()).status();
        assert!(stopped.expect("kill is there").success());
        let mut rest = String::new();
        log.read_to_string(&mut rest).expect("text");
        assert_eq!(child.wait().expect("it ends").code(), Some(0), "{args:?}: {rest}");
        assert!(directory.path().join("data/identity.json").exists(), "{args:?}");
    }
}
