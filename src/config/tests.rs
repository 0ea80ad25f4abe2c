//! Configuration as stories: what a file, an environment and a command line come to, and what is said when it is wrong.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU64;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A working directory with files, and the sources that read it.
struct World {
    dir: TempDir,
    sources: Sources,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sources = Sources { working_dir: dir.path().to_path_buf(), ..Sources::default() };
        Self { dir, sources }
    }

    fn with(yaml: &str) -> Self {
        Self::new().file("application.yml", yaml)
    }

    fn file(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        fs::write(self.dir.path().join(name), text).expect("a file in a temporary directory");
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn set(mut self, assignment: &str) -> Self {
        self.sources.set.push(assignment.to_owned());
        self
    }

    fn profile(mut self, names: &str) -> Self {
        self.sources.profile = Some(names.to_owned());
        self
    }

    fn config(mut self, file: &str) -> Self {
        self.sources.file = Some(file.into());
        self
    }

    fn load(&self) -> Loaded {
        match load(&self.sources) {
            Ok(loaded) => loaded,
            Err(error) => panic!("refused:\n{error}"),
        }
    }

    fn refusal(&self) -> String {
        load(&self.sources).err().map(|error| error.to_string()).unwrap_or_default()
    }
}

fn shown(loaded: &Loaded, key: &str) -> (String, String) {
    let found = loaded.settings.iter().find(|setting| setting.key == key);
    let setting = found.unwrap_or_else(|| panic!("{key} is not listed"));
    (setting.value.clone(), setting.origin.to_string())
}

#[test]
fn every_row_of_the_table_takes_its_default_and_its_bounds() {
    for key in KEYS {
        let mut config = Config::blank();
        assert!(key.apply(&mut config, key.default).is_ok(), "default of {}", key.path);
        let (keys::Kind::Count(min, max, _)
        | keys::Kind::Size(min, max, _)
        | keys::Kind::Duration(min, max, _)) = key.kind
        else {
            continue;
        };
        assert!(key.apply(&mut config, &min.to_string()).is_ok(), "least of {}", key.path);
        assert!(key.apply(&mut config, &max.to_string()).is_ok(), "most of {}", key.path);
        assert!(key.apply(&mut config, &(max + 1).to_string()).is_err(), "above {}", key.path);
    }
}

#[test]
fn no_two_keys_share_a_name() {
    let mut names = HashSet::new();
    for key in KEYS {
        assert!(names.insert(names::canonical(key.path)), "{}", key.path);
        assert!(names.insert(environment_name(key.path).replace('_', "~")), "{}", key.path);
        if let Some(alias) = key.alias {
            assert!(names.insert(alias.to_owned()), "{alias}");
        }
        assert!(!key.about.is_empty() && !key.about.ends_with('.'), "{}", key.path);
    }
}

#[test]
fn nothing_given_means_the_documented_defaults() {
    let loaded = World::new().load();
    let config = &loaded.config;
    assert_eq!(config, &Config::default());
    assert_eq!(config.server.address, IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!((config.server.port, config.grpc.port), (8080, 9090));
    assert_eq!(config.storage.memtable_max_size, 104_857_600);
    assert_eq!(config.storage.sync, SyncMode::Always);
    assert_eq!(config.raft.election_timeout, Duration::from_secs(1));
    assert_eq!(config.hash_ring.shards, 16);
    assert_eq!(config.limits.key_size, 4096);
    assert_eq!(loaded.settings.len(), KEYS.len());
    assert!(loaded.settings.iter().all(|setting| setting.origin == Origin::Default));
}

#[test]
fn each_layer_wins_over_the_one_before() {
    let mut world = World::with("kvstore.hash-ring: { shards: 2, replication-factor: 2 }\n");
    let shards = |world: &World| shown(&world.load(), "kvstore.hash-ring.shards");
    assert_eq!(shards(&world), ("2".into(), "application.yml:1".into()));
    world =
        world.file("application-big.yml", "kvstore:\n  hash-ring:\n    shards: 3\n").profile("big");
    assert_eq!(shards(&world), ("3".into(), "application-big.yml:3".into()));
    world = world.file("application-huge.yml", "kvstore.hash-ring.shards: 4\n").profile("big,huge");
    assert_eq!(shards(&world), ("4".into(), "application-huge.yml:1".into()));
    world = world.env("KVSTORE_HASHRING_SHARDS", "5");
    assert_eq!(shards(&world), ("5".into(), "environment KVSTORE_HASHRING_SHARDS".into()));
    world = world.set("kvstore.hash-ring.shards=6").set("kvstore.hashRing.shards=7");
    assert_eq!(shards(&world), ("7".into(), "--set".into()));
    assert_eq!(world.load().config.hash_ring.replication_factor, 2, "the file still counts");
}

#[test]
fn profiles_come_from_the_command_line_the_environment_or_the_file() {
    let world = World::with("spring.profiles.active: ${WHICH:a}\n")
        .file("application-a.yml", "kvstore.node.id: a\n")
        .file("application-b.yml", "kvstore.node.id: b\n")
        .file("application-c.yml", "kvstore.node.id: c\n");
    assert_eq!(world.load().config.node.id, "a");
    let world = world.env("SPRING_PROFILES_ACTIVE", "b");
    assert_eq!(world.load().config.node.id, "b");
    let world = world.profile("c");
    assert_eq!(world.load().config.node.id, "c");
    let world = world.profile("nowhere");
    let loaded = world.load();
    assert_eq!(loaded.config.node.id, "node1");
    assert!(loaded.notes.iter().any(|note| note.starts_with("profile nowhere has no file")));
    let refusal = world.profile("../etc").refusal();
    assert!(
        refusal.starts_with("--profile: spring.profiles.active: \"../etc\" is not"),
        "{refusal}"
    );
}

#[test]
fn the_three_node_script_of_the_readme_works() {
    let members = "n1=10.0.0.1:9090,n2=10.0.0.2:9090,n3=10.0.0.3:9090";
    let world = World::new()
        .env("NODE_ID", "n1")
        .env("NODE_HOST", "10.0.0.1")
        .env("NODE_PORT", "8081")
        .env("SERVER_ADDRESS", "0.0.0.0")
        .env("KVSTORE_STORAGE_DATADIR", "/data/n1")
        .env("KVSTORE_CLUSTER_SECRET", "hunter2")
        .env("KVSTORE_CLUSTER_MEMBERS", members);
    let config = world.load().config;
    assert_eq!((config.node.id.as_str(), config.node.host.as_str()), ("n1", "10.0.0.1"));
    assert_eq!((config.server.port, config.server.address.to_string()), (8081, "0.0.0.0".into()));
    assert_eq!(config.storage.data_dir, PathBuf::from("/data/n1"));
    let second = Member { node: "n2".into(), address: "10.0.0.2:9090".into() };
    assert_eq!(config.cluster.members.get(1), Some(&second));
}

#[test]
fn a_file_of_the_replaced_system_starts_as_it_is() {
    let world = World::with(
        "server:\n  port: ${NODE_PORT:8080}\n  shutdown: graceful\n\
         spring:\n  application:\n    name: distributed-kv-store\n  profiles:\n    active: node1\n  \
         datasource: { password: hunter2 }\n\
         kvstore:\n  node:\n    id: ${NODE_ID:node1}\n    host: ${NODE_HOST:localhost}\n  storage:\n    \
         data-dir: ./data/${kvstore.node.id}\n    memtable:\n      max-size: 100MB\n    sstable:\n      \
         maxSize: 100MB\n  compaction:\n    enabled: true\n    interval: 300000ms\n  raft:\n    \
         enabled: yes\n    election_timeout: 5000ms\n    heartbeat-interval: 1000ms\n  hash-ring:\n    \
         virtual-nodes-per-node: 150\n    replication-factor: 3\n  grpc:\n    enabled: true\n    port: 9090\n\
         management:\n  endpoints:\n    web:\n      exposure:\n        include: [health, info, metrics, prometheus]\n  \
         endpoint:\n    health:\n      show-details: always\n  metrics:\n    export: { prometheus: { enabled: true } }\n\
         logging:\n  level:\n    root: INFO\n    com.example.kvstore: DEBUG\n    org.springframework.web: WARN\n  \
         pattern:\n    console: \"%d{yyyy-MM-dd HH:mm:ss} ${UNSET_BY_ANYONE} - %msg%n\"\n  file:\n    \
         name: logs/kvstore.log\n    max-size: 10MB\n",
    );
    let loaded = world.load();
    let config = &loaded.config;
    assert_eq!(config.raft.election_timeout, Duration::from_secs(5));
    assert_eq!(config.compaction.interval, Duration::from_mins(5));
    assert_eq!(config.storage.data_dir, PathBuf::from("./data/node1"));
    assert_eq!(config.node.host, "localhost");
    assert_eq!(config.logging.file, Some("logs/kvstore.log".into()));
    let levels = [
        ("com::example::kvstore".to_owned(), LogLevel::Debug),
        ("org::springframework::web".to_owned(), LogLevel::Warn),
    ];
    assert_eq!(config.logging.levels, levels);
    let ignored: Vec<&Setting> =
        loaded.settings.iter().filter(|setting| setting.ignored.is_some()).collect();
    assert!(
        ignored
            .iter()
            .any(|s| s.key == "server.shutdown" && s.origin.to_string() == "application.yml:3")
    );
    assert!(ignored.iter().any(|s| s.key == "spring.datasource.password" && s.value == MASK));
}

#[test]
fn relaxed_names_lists_and_elements_are_understood() {
    for yaml in [
        "kvstore: { cluster: { join: [\"a:1\", \"b:2\"] } }\n",
        "kvstore:\n  cluster:\n    join:\n      - a:1\n      - b:2\n",
        "kvstore.cluster.join: a:1, b:2\n",
        "KVSTORE.Cluster.JOIN: 'a:1,b:2'\n",
    ] {
        let world = World::with(yaml).env("NODE_HOST", "c");
        assert_eq!(world.load().config.cluster.join, ["a:1", "b:2"], "{yaml}");
    }
    let world = World::new()
        .env("KVSTORE_CLUSTER_JOIN_1", "b:2")
        .env("KVSTORE_CLUSTER_JOIN_0", "a:1")
        .env("NODE_HOST", "c");
    assert_eq!(world.load().config.cluster.join, ["a:1", "b:2"]);
    let refusal = World::new().env("KVSTORE_CLUSTER_JOIN_1", "b:2").refusal();
    assert!(refusal.contains("numbered from _0"), "{refusal}");
}

#[test]
fn the_environment_has_spellings_aliases_and_foreigners() {
    let world = World::new()
        .env("NODE_ID", "weak")
        .env("KVSTORE_NODE_ID", "strong")
        .env("KVSTORE_STORAGE_DATA_DIR", "/d")
        .env("KVSTORE_CLUSTER_SECRET", "")
        .env("KVSTORE_ENDPOINTS", "http://a:1")
        .env("KVSTORE_TEST_SEED", "7")
        .env("KVSTORE_GRPC_PORT", "tcp://10.0.0.7:9090")
        .env("KVSTORE_SERVICE_HOST", "10.0.0.7")
        .env("LOGGING_LEVEL_ROOT", "warn")
        .env("LOGGING_LEVEL_KVSTORE_RAFT", "DEBUG");
    let config = world.load().config;
    assert_eq!(config.node.id, "strong");
    assert_eq!(config.storage.data_dir, PathBuf::from("/d"));
    assert_eq!(config.grpc.port, 9090);
    assert_eq!(config.logging.level, LogLevel::Warn);
    assert_eq!(config.logging.levels, [("kvstore::raft".to_owned(), LogLevel::Debug)]);
    let refusal = World::new()
        .env("KVSTORE_STORAGE_DATA_DIR", "/a")
        .env("KVSTORE_STORAGE_DATADIR", "/b")
        .refusal();
    assert!(refusal.contains("contradicts KVSTORE_STORAGE_DATADIR"), "{refusal}");
}

#[test]
fn all_problems_are_told_at_once_with_their_places() {
    let world = World::with(
        "kvstore:\n  storage:\n    engnie: lsm\n    sync: alwyas\n    memtable: 100MB\n    block-cache:\n      \
         max-size: 5 elephants\n  node:\n    id: \"a b\"\n    id: c\n  hash-ring:\n    shards: [1, 2]\n\
         grpc.port: 1\nserver:\n  port: ${PORT_OF_NOBODY}\n  ssl: { enabled: true }\n\
         nobody.knows: 1\n",
    )
    .env("KVSTORE_STORAGE_SYNK", "always")
    .env("KVSTORE_GRPC_ENABLED", "perhaps")
    .env("KVSTORE_CLUSTER_SECRET", &"s3cret".repeat(300))
    .set("kvstore.raft.leases=maybe")
    .set("kvstore.raft.lease=true")
    .set("nothing");
    let expected = "\
application.yml:3: kvstore.storage.engnie: no such key; did you mean kvstore.storage.engine?
application.yml:5: kvstore.storage.memtable: is a section and takes no value
application.yml:10: kvstore.node.id: is already set on line 9
application.yml:12: kvstore.hash-ring.shards: a list is not allowed: a whole number from 1 to 4096
application.yml:13: grpc.port: no such key; did you mean kvstore.grpc.port?
application.yml:16: server.ssl.enabled: is not supported: this program serves no TLS; put a proxy in front of it
application.yml:17: nobody.knows: no such key; `kvstore config` lists all
environment KVSTORE_STORAGE_SYNK: no such key; did you mean KVSTORE_STORAGE_SYNC?
--set: kvstore.raft.lease: no such key; did you mean kvstore.raft.leases?
--set: nothing: is not of the form key=value
application.yml:4: kvstore.storage.sync: \"alwyas\" is not allowed: always, interval or never; did you mean always?
application.yml:7: kvstore.storage.block-cache.max-size: \"5 elephants\" is not allowed: a size from 0B to 1TB
application.yml:9: kvstore.node.id: \"a b\" is not allowed: 1 to 64 characters of A-Z a-z 0-9 . _ -
application.yml:15: server.port: ${PORT_OF_NOBODY} is neither a variable nor a key, and has no default
environment KVSTORE_GRPC_ENABLED: \"perhaps\" is not allowed: true or false
environment KVSTORE_CLUSTER_SECRET: the value is not allowed: text of at most 1024 bytes
--set: kvstore.raft.leases: \"maybe\" is not allowed: true or false";
    assert_eq!(world.refusal(), expected);
}

#[test]
fn what_a_node_is_in_its_cluster_can_be_said() {
    let config = World::new().load().config;
    assert_eq!((config.node.weight, config.node.zone), (100, None));
    assert_eq!(config.cluster.replace_after, Some(Duration::from_mins(30)));
    assert_eq!(config.cluster.move_rate.map(NonZeroU64::get), Some(64 << 20));
    assert!(config.raft.follower_reads);

    let world = World::with(
        "kvstore:\n  node: { zone: rack-7, weight: 250 }\n  \
         cluster: { replace-after: 0, move-rate: 0 }\n  raft: { follower-reads: off }\n",
    );
    let config = world.load().config;
    assert_eq!((config.node.weight, config.node.zone.as_deref()), (250, Some("rack-7")));
    assert_eq!((config.cluster.replace_after, config.cluster.move_rate), (None, None));
    assert!(!config.raft.follower_reads);

    for (yaml, refusal) in [
        ("kvstore.node.weight: 0", "weight: \"0\" is not allowed: a whole number from 1 to 1000"),
        (
            "kvstore.node.zone: rack 7",
            "zone: \"rack 7\" is not allowed: 1 to 64 characters of A-Z a-z 0-9 . _ -, or nothing",
        ),
        (
            "kvstore.cluster.replace-after: -1s",
            "replace-after: \"-1s\" is not allowed: a duration from 0ms to 365d",
        ),
    ] {
        let said = World::with(yaml).refusal();
        assert!(said.ends_with(refusal), "{said}");
    }
    let zone = format!("kvstore.node.zone: {}", "z".repeat(65));
    assert!(World::with(&zone).refusal().contains("is not allowed"));
}

#[test]
fn an_address_has_brackets_where_it_needs_them() {
    let at = |host: &str| Node { host: host.to_owned(), ..Node::default() }.address(9090);
    assert_eq!(at("n1.example"), "n1.example:9090");
    assert_eq!(at("::1"), "[::1]:9090");
}

#[test]
fn combinations_that_cannot_work_are_refused() {
    for (yaml, refusal) in [
        (
            "kvstore.raft: { election-timeout: 100ms, heartbeat-interval: 100ms }",
            "application.yml:1: kvstore.raft.election-timeout: has to be at least three times kvstore.raft.heartbeat-interval",
        ),
        (
            "server.port: 9090",
            "default: kvstore.grpc.port: is also server.port; the two ports have to differ",
        ),
        (
            "kvstore.limits.page-items: 10",
            "default: kvstore.limits.page-items-default: is more than kvstore.limits.page-items",
        ),
        (
            "kvstore.cluster: { members: [node2=a:1] }",
            "application.yml:1: kvstore.cluster.members: does not name this node, see kvstore.node.id",
        ),
        (
            "kvstore.cluster: { members: [node1=a:1, node1=b:1] }",
            "application.yml:1: kvstore.cluster.members: names a node twice",
        ),
        (
            "kvstore.cluster: { members: [node1=a:1], join: ['a:1'] }\nkvstore.node.host: b",
            "application.yml:1: kvstore.cluster.join: is set together with kvstore.cluster.members: a node either creates a cluster or joins one",
        ),
        (
            "kvstore.cluster: { join: ['127.0.0.1:1', 'a:1'] }",
            "default: kvstore.node.host: is reached from this machine only, but kvstore.cluster.join names others; set it (or NODE_HOST) to the name or address under which they reach this node",
        ),
        (
            "kvstore: { node.host: '::1', cluster: { join: '[::2]:1' } }",
            "application.yml:1: kvstore.node.host: is reached from this machine only, but kvstore.cluster.join names others; set it (or NODE_HOST) to the name or address under which they reach this node",
        ),
        (
            "kvstore: { raft.enabled: no, node.host: b, cluster: { join: 'a:1' } }",
            "application.yml:1: kvstore.raft.enabled: is false, but kvstore.cluster names other nodes",
        ),
    ] {
        assert_eq!(World::with(yaml).refusal(), refusal, "{yaml}");
    }
    World::with("kvstore.cluster: { join: ['127.0.0.1:1', '[::1]:2', 'localhost:3'] }").load();
    World::with("kvstore: { node.host: 10.0.0.4, cluster: { join: '127.0.0.1:1' } }").load();
    World::with("server.port: 0\nkvstore.grpc.port: 0\n").load();
    World::with("server.port: 9090\nkvstore.grpc.enabled: off\n").load();
}

#[test]
fn peers_need_a_secret_where_others_reach_them_unless_that_is_wanted() {
    let members = "kvstore.cluster.members: node1=a:1, node2=b:1\n";
    let open = format!("server.address: 0.0.0.0\n{members}");
    let refusal = "application.yml:1: server.address: is not loopback, and without a secret whoever reaches it could pass for a node of the cluster; set the same kvstore.cluster.secret (or kvstore.cluster.secret-file) on all nodes, or, on a network that you trust, kvstore.cluster.insecure: true";
    assert_eq!(World::with(&open).refusal(), refusal);
    let join = "server.address: '::'\nkvstore.node.host: b\nkvstore.cluster.join: a:1\n";
    assert_eq!(World::with(join).refusal(), refusal);
    assert_eq!(World::with(&format!("{open}kvstore.cluster.secret: ''\n")).refusal(), refusal);
    assert_eq!(World::with(&format!("{open}kvstore.cluster.insecure: off\n")).refusal(), refusal);

    World::with(&format!("{open}kvstore.cluster.secret: hunter2\n")).load();
    let file = format!("{open}kvstore.cluster.secret-file: key\n");
    World::with(&file).file("key", "hunter2\n").load();
    let insecure = World::with(&format!("{open}kvstore.cluster.insecure: true\n")).load();
    assert!(insecure.config.cluster.insecure);
    for loopback in ["127.0.0.1", "127.8.0.1", "'::1'", "localhost"] {
        World::with(&format!("server.address: {loopback}\n{members}")).load();
    }
    // A node by itself has no peers.
    World::with("server.address: 0.0.0.0\n").load();
}

#[test]
fn secrets_are_never_shown() {
    let world = World::with("kvstore.cluster.secret: hunter2\n");
    let loaded = world.load();
    assert_eq!(loaded.config.cluster.secret, "hunter2");
    assert_eq!(shown(&loaded, "kvstore.cluster.secret").0, MASK);
    assert!(!format!("{loaded:?}").contains("hunter2"));

    let world = World::with("kvstore.cluster.secret-file: key\n").file("key", "hunter2\nmore\n");
    let loaded = world.load();
    assert_eq!(loaded.config.cluster.secret, "hunter2");
    assert!(!format!("{loaded:?}").contains("hunter2"));

    for (text, why) in [(&b"\nhunter2"[..], "empty first line"), (b"hunter2\xff", "not UTF-8")] {
        let refusal = World::with("kvstore.cluster.secret-file: key\n").file("key", text).refusal();
        assert!(refusal.contains(why) && !refusal.contains("hunter2"), "{refusal}");
    }
}

#[test]
fn a_file_that_is_named_has_to_exist_and_be_readable() {
    let world = World::new().config("missing.yml");
    assert!(world.refusal().starts_with("missing.yml: cannot be read: "), "{}", world.refusal());
    let world = World::new().file("other.yml", "kvstore.node.id: x\n").config("other.yml");
    assert_eq!(world.load().config.node.id, "x");
    let refusal = World::new().file("application.yml", b"\xff\xfe").refusal();
    assert!(refusal.starts_with("application.yml: cannot be read: "), "{refusal}");
    let refusal = World::with(&" ".repeat((1 << 20) + 1)).refusal();
    assert!(refusal.contains("larger than 1048576 bytes"), "{refusal}");
    let refusal = World::with("a: [\n").refusal();
    assert!(refusal.starts_with("application.yml:") && refusal.contains("not YAML"), "{refusal}");
    let world = World::new().file("application.yaml", "kvstore.node.id: y\n");
    assert_eq!(world.load().config.node.id, "y");
}

#[test]
fn a_placeholder_that_is_overridden_need_not_resolve() {
    let world = World::with("kvstore.node.id: ${NOBODY}\n").set("kvstore.node.id=n7");
    assert_eq!(world.load().config.node.id, "n7");
}

proptest! {
    #[test]
    fn any_text_as_a_value_is_taken_or_refused(row in 0..KEYS.len(), text in "\\PC{0,40}") {
        let mut config = Config::default();
        let _ = KEYS[row].apply(&mut config, &text);
    }

    #[test]
    fn any_assignment_is_taken_or_refused(text in "\\PC{0,40}") {
        let sources = Sources { set: vec![text.clone()], environment: vec![(text, "1".into())], ..Sources::default() };
        let _ = load(&sources);
    }
}
