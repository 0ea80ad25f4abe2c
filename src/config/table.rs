//! The one list of all keys, and of the foreign keys that a file of the replaced Java system may carry.
//!
//! To add a key: a field in `settings.rs`, a row here. Nothing else knows keys. Each row stores through a function of the
//! field's own type, so that a row cannot fill the wrong kind of field; [`narrow`] holds because a test stores the bounds
//! of every row.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use super::keys::{Key, Kind};
use super::settings::{Config, Engine, LogFormat, SyncMode};
use super::value;
use crate::cluster::{Weight, is_name};

const KB: u64 = 1 << 10;
const MB: u64 = 1 << 20;
const GB: u64 = 1 << 30;
const TB: u64 = 1 << 40;
const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// The engine when nothing is said.
const ENGINE_DEFAULT: Engine = Engine::Lsm;

/// Most nodes that may hold one shard.
pub const REPLICATION_FACTOR_MAX: u64 = 9;

/// Every key, in the order of the documentation.
pub static KEYS: &[Key] = &[
    key(
        "server.address",
        "127.0.0.1",
        "address on which both ports listen",
        Kind::Address(|c, v| c.server.address = v),
    ),
    key(
        "server.port",
        "8080",
        "HTTP port: REST, gRPC-Web, actuator; 0 lets the system pick",
        Kind::Count(0, 65_535, |c, v| c.server.port = narrow(v)),
    )
    .alias("NODE_PORT"),
    key(
        "logging.level",
        "info",
        "what is logged; logging.level.{logger} for one logger, dots for its modules",
        Kind::Level(|c, v| c.logging.level = v),
    ),
    key(
        "logging.format",
        "text",
        "form of log lines",
        Kind::Word(LogFormat::WORDS, |c, v| c.logging.format = word(LogFormat::from_word(v))),
    ),
    key(
        "logging.file.name",
        "",
        "file that receives the log too; none when empty",
        Kind::Text("a path", any, |c, v| c.logging.file = path(v)),
    ),
    key(
        "kvstore.node.id",
        "node1",
        "name of this node, unique in the cluster",
        Kind::Text("1 to 64 characters of A-Z a-z 0-9 . _ -", is_name, |c, v| {
            c.node.id = v.into();
        }),
    )
    .alias("NODE_ID"),
    key(
        "kvstore.node.host",
        "127.0.0.1",
        "host name or address of this node that is told to others",
        Kind::Text("a host name or address without port", value::host, |c, v| {
            c.node.host = v.into();
        }),
    )
    .alias("NODE_HOST"),
    key(
        "kvstore.node.zone",
        "",
        "what this node fails together with, as a rack or room; copies of a shard go to different ones; alone when empty",
        Kind::Text(
            "1 to 64 characters of A-Z a-z 0-9 . _ -, or nothing",
            |v| v.is_empty() || is_name(v),
            |c, v| c.node.zone = some(v).then(|| v.into()),
        ),
    ),
    key(
        "kvstore.node.weight",
        "100",
        "how much this node carries compared with others: one with 200 carries twice",
        Kind::Count(1, Weight::MAX.0 as u64, |c, v| c.node.weight = narrow(v)),
    ),
    key(
        "kvstore.storage.engine",
        ENGINE_DEFAULT.as_str(),
        "what keeps the data",
        Kind::Word(Engine::WORDS, |c, v| c.storage.engine = word(Engine::from_word(v))),
    ),
    key(
        "kvstore.storage.data-dir",
        "./data",
        "directory of this node's data",
        Kind::Text("a path", some, |c, v| c.storage.data_dir = v.into()),
    ),
    key(
        "kvstore.storage.sync",
        "always",
        "when writes reach stable storage; only always loses nothing",
        Kind::Word(SyncMode::WORDS, |c, v| c.storage.sync = word(SyncMode::from_word(v))),
    ),
    key(
        "kvstore.storage.sync-interval",
        "100ms",
        "most that a power cut costs with sync: interval",
        Kind::Duration(1, MINUTE, |c, v| c.storage.sync_interval = v),
    ),
    key(
        "kvstore.storage.memtable.max-size",
        "100MB",
        "size at which a memtable of a shard is written to a table; all together take four times as much",
        Kind::Size(64 * KB, 2 * GB, |c, v| c.storage.memtable_max_size = narrow(v)),
    ),
    key(
        "kvstore.storage.sstable.max-size",
        "100MB",
        "largest table file",
        Kind::Size(64 * KB, 2 * GB, |c, v| c.storage.sstable_max_size = narrow(v)),
    ),
    key(
        "kvstore.storage.block-cache.max-size",
        "256MB",
        "cache of table blocks, for all shards together",
        Kind::Size(0, TB, |c, v| c.storage.block_cache_max_size = narrow(v)),
    ),
    key(
        "kvstore.storage.open-files-max",
        "1000",
        "table files that are open at once, for all shards together",
        Kind::Count(16, 1_000_000, |c, v| c.storage.open_files_max = narrow(v)),
    ),
    key(
        "kvstore.storage.disk-free-min",
        "100MB",
        "free disk space below which writes are refused",
        Kind::Size(0, TB, |c, v| c.storage.disk_free_min = v),
    ),
    key(
        "kvstore.compaction.enabled",
        "true",
        "merge tables in the background",
        Kind::Switch(|c, v| c.compaction.enabled = v),
    ),
    key(
        "kvstore.compaction.interval",
        "300000ms",
        "longest time between two looks for tables to merge",
        Kind::Duration(SECOND, 7 * DAY, |c, v| c.compaction.interval = v),
    ),
    key(
        "kvstore.raft.enabled",
        "true",
        "replicate; false is one node with the engine's own log",
        Kind::Switch(|c, v| c.raft.enabled = v),
    ),
    key(
        "kvstore.raft.election-timeout",
        "1000ms",
        "shortest silence of a leader before an election",
        Kind::Duration(50, 5 * MINUTE, |c, v| c.raft.election_timeout = v),
    ),
    key(
        "kvstore.raft.heartbeat-interval",
        "150ms",
        "time between two signs of life of a leader",
        Kind::Duration(10, MINUTE, |c, v| c.raft.heartbeat_interval = v),
    ),
    key(
        "kvstore.raft.leases",
        "false",
        "allow reads that trust the leader's lease and so the clocks",
        Kind::Switch(|c, v| c.raft.leases = v),
    ),
    key(
        "kvstore.raft.follower-reads",
        "true",
        "answer confirmed reads on replicas that do not lead, too; false passes them on to the leader",
        Kind::Switch(|c, v| c.raft.follower_reads = v),
    ),
    key(
        "kvstore.raft.stale-max",
        "10m",
        "longest silence of a leader after which stale reads are still answered; 0: any",
        Kind::Duration(0, 7 * DAY, |c, v| c.raft.stale_max = (!v.is_zero()).then_some(v)),
    ),
    key(
        "kvstore.raft.log-keep",
        "10000",
        "entries that stay in a shard's log behind a snapshot, for nodes that were away briefly",
        Kind::Count(0, 10_000_000, |c, v| c.raft.log_keep = v),
    ),
    key(
        "kvstore.raft.snapshot-log-size",
        "64MB",
        "bytes that a shard writes between two snapshots, behind which its log is cut",
        Kind::Size(KB, 64 * GB, |c, v| c.raft.snapshot_log_size = v),
    ),
    key(
        "kvstore.raft.log-max-size",
        "1GB",
        "bytes of the log of all shards above which the shard that holds the oldest part makes a snapshot",
        Kind::Size(MB, TB, |c, v| c.raft.log_max_size = v),
    ),
    key(
        "kvstore.hash-ring.virtual-nodes-per-node",
        "150",
        "points of each node on the hash ring",
        Kind::Count(1, 10_000, |c, v| c.hash_ring.virtual_nodes_per_node = narrow(v)),
    ),
    key(
        "kvstore.hash-ring.replication-factor",
        "3",
        "nodes that hold each shard",
        Kind::Count(1, REPLICATION_FACTOR_MAX, |c, v| c.hash_ring.replication_factor = narrow(v)),
    ),
    key(
        "kvstore.hash-ring.shards",
        "16",
        "slices of the data, fixed when the cluster is created",
        Kind::Count(1, 4_096, |c, v| c.hash_ring.shards = narrow(v)),
    ),
    key(
        "kvstore.grpc.enabled",
        "true",
        "open the gRPC port",
        Kind::Switch(|c, v| c.grpc.enabled = v),
    ),
    key(
        "kvstore.grpc.port",
        "9090",
        "gRPC port: public API and peers; 0 lets the system pick",
        Kind::Count(0, 65_535, |c, v| c.grpc.port = narrow(v)),
    ),
    key(
        "kvstore.cluster.members",
        "",
        "nodes that create the cluster together",
        Kind::List(
            "id=host:port",
            |item| value::member(item).is_some(),
            |c, v| c.cluster.members = v.iter().filter_map(|item| value::member(item)).collect(),
        ),
    ),
    key(
        "kvstore.cluster.join",
        "",
        "nodes of the cluster that this node joins",
        Kind::List("host:port", value::endpoint, |c, v| c.cluster.join = v),
    ),
    key(
        "kvstore.cluster.secret",
        "",
        "what peers prove to each other; none when empty",
        Kind::Text(
            "text of at most 1024 bytes",
            |v| v.len() <= 1_024,
            |c, v| c.cluster.secret = v.into(),
        ),
    )
    .secret(),
    key(
        "kvstore.cluster.secret-file",
        "",
        "file whose first line is the secret",
        Kind::Text("a path", any, |c, v| c.cluster.secret_file = path(v)),
    ),
    key(
        "kvstore.cluster.insecure",
        "false",
        "let peers do without a secret on an address that is not loopback",
        Kind::Switch(|c, v| c.cluster.insecure = v),
    ),
    key(
        "kvstore.cluster.replace-after",
        "30m",
        "time that a node may be away before others take over what it holds; 0 never",
        Kind::Duration(0, 365 * DAY, |c, v| c.cluster.replace_after = above_zero(v)),
    ),
    key(
        "kvstore.cluster.move-rate",
        "64MB",
        "bytes a second of each copy of a shard that is sent to another node; 0 as fast as it goes",
        Kind::Size(0, TB, |c, v| c.cluster.move_rate = NonZeroU64::new(v)),
    ),
    key(
        "kvstore.limits.key-size",
        "4KiB",
        "longest key",
        Kind::Size(1, 4 * KB, |c, v| c.limits.key_size = narrow(v)),
    ),
    key(
        "kvstore.limits.value-size",
        "1MiB",
        "longest value",
        Kind::Size(1, 64 * MB, |c, v| c.limits.value_size = narrow(v)),
    ),
    key(
        "kvstore.limits.batch-entries",
        "10000",
        "most entries of a batch",
        Kind::Count(1, 1_000_000, |c, v| c.limits.batch_entries = narrow(v)),
    ),
    key(
        "kvstore.limits.batch-size",
        "8MiB",
        "most bytes of keys and values in a batch",
        Kind::Size(1, 256 * MB, |c, v| c.limits.batch_size = narrow(v)),
    ),
    key(
        "kvstore.limits.page-items-default",
        "1000",
        "items of a page when the request does not say",
        Kind::Count(1, 1_000_000, |c, v| c.limits.page_items_default = narrow(v)),
    ),
    key(
        "kvstore.limits.page-items",
        "10000",
        "most items of a page",
        Kind::Count(1, 1_000_000, |c, v| c.limits.page_items = narrow(v)),
    ),
    key(
        "kvstore.limits.page-size",
        "4MiB",
        "most bytes of keys and values in a page",
        Kind::Size(KB, 256 * MB, |c, v| c.limits.page_size = narrow(v)),
    ),
    key(
        "kvstore.limits.request-size",
        "16MiB",
        "most bytes of a request after decompression",
        Kind::Size(KB, 512 * MB, |c, v| c.limits.request_size = narrow(v)),
    ),
    key(
        "kvstore.limits.deadline-default",
        "30s",
        "deadline of a call that names none",
        Kind::Duration(1, HOUR, |c, v| c.limits.deadline_default = v),
    ),
    key(
        "kvstore.limits.deadline-max",
        "60s",
        "longest deadline; longer ones are cut",
        Kind::Duration(1, HOUR, |c, v| c.limits.deadline_max = v),
    ),
    key(
        "kvstore.limits.in-flight-requests",
        "16384",
        "most requests worked on at a time",
        Kind::Count(1, 1_000_000, |c, v| c.limits.in_flight_requests = narrow(v)),
    ),
    key(
        "kvstore.limits.in-flight-size",
        "256MiB",
        "most bytes of the requests worked on",
        Kind::Size(KB, TB, |c, v| c.limits.in_flight_size = narrow(v)),
    ),
    key(
        "kvstore.limits.session-operations",
        "1024",
        "most operations of a session that wait for their answer",
        Kind::Count(1, 1_000_000, |c, v| c.limits.session_operations = narrow(v)),
    ),
    key(
        "kvstore.limits.session-size",
        "8MiB",
        "most bytes of a session's waiting operations",
        Kind::Size(KB, GB, |c, v| c.limits.session_size = narrow(v)),
    ),
    key(
        "kvstore.http2.max-concurrent-streams",
        "1024",
        "calls at a time on one connection",
        Kind::Count(1, 1_000_000, |c, v| c.http2.max_concurrent_streams = narrow(v)),
    ),
    key(
        "kvstore.http2.keep-alive-interval",
        "20s",
        "silence before a connection is probed; 0 never",
        Kind::Duration(0, DAY, |c, v| c.http2.keep_alive_interval = above_zero(v)),
    ),
    key(
        "kvstore.http2.keep-alive-timeout",
        "20s",
        "wait for the answer to a probe",
        Kind::Duration(SECOND, HOUR, |c, v| c.http2.keep_alive_timeout = v),
    ),
    key(
        "kvstore.http2.connection-age",
        "4h",
        "age at which a connection is told to go; 0 never",
        Kind::Duration(0, 365 * DAY, |c, v| c.http2.connection_age = above_zero(v)),
    ),
    key(
        "kvstore.http2.connection-age-grace",
        "1m",
        "time its calls then still have",
        Kind::Duration(0, DAY, |c, v| c.http2.connection_age_grace = v),
    ),
    key(
        "kvstore.http2.connections-max",
        "10000",
        "open connections, both ports together",
        Kind::Count(1, 1_000_000, |c, v| c.http2.connections_max = narrow(v)),
    ),
    key(
        "kvstore.shutdown.timeout",
        "20s",
        "time that calls still have after the signal to stop",
        Kind::Duration(0, HOUR, |c, v| c.shutdown.timeout = v),
    ),
    key(
        "kvstore.cors.origins",
        "",
        "pages that may call from a browser",
        Kind::List("https://host[:port], or *", value::origin, |c, v| c.cors.origins = v),
    ),
    key(
        "kvstore.backup.dir",
        "",
        "the only directory for backups; none are taken when empty",
        Kind::Text("a path", any, |c, v| c.backup.dir = path(v)),
    ),
];

/// Keys of the replaced system and its frameworks that have no effect here, by prefix, and who does their work. A key
/// is accepted when it equals a prefix or goes on after it with a dot.
pub(super) static FOREIGN: &[(&str, &str)] = &[
    ("spring.profiles.active", "it chose the profile"),
    ("spring", "Spring Boot only"),
    ("management", "all of /actuator is always served on server.port"),
    ("info", "/actuator/info tells about this program"),
    ("springdoc", "/openapi.json is always served"),
    ("server.shutdown", "always graceful, see kvstore.shutdown.timeout"),
    ("server.compression", "compression follows the request's headers"),
    ("server.http2", "always on, see kvstore.http2"),
    ("server.forward-headers-strategy", "X-Forwarded-Proto and -Host are always honoured"),
    ("server.max-http-request-header-size", "fixed"),
    ("server.max-http-header-size", "fixed"),
    ("server.error", "errors have the form of google.rpc.Status"),
    ("server.servlet", "Java only"),
    ("server.tomcat", "Java only, see kvstore.limits and kvstore.http2"),
    ("server.netty", "Java only, see kvstore.limits and kvstore.http2"),
    ("server.jetty", "Java only, see kvstore.limits and kvstore.http2"),
    ("server.undertow", "Java only, see kvstore.limits and kvstore.http2"),
    ("logging.pattern", "the form follows logging.format"),
    ("logging.logback", "the log file grows; rotate it with logrotate and copytruncate"),
    ("logging.file.max-size", "the log file grows; rotate it with logrotate and copytruncate"),
    ("logging.file.max-history", "the log file grows; rotate it with logrotate and copytruncate"),
    ("logging.charset", "always UTF-8"),
    ("logging.group", "name the loggers in logging.level"),
];

/// Keys of the replaced system whose silent loss would surprise: they refuse the start.
pub(super) static REFUSED: &[(&str, &str)] = &[
    ("spring.config", "name the file with --config and the overlays with --profile"),
    ("spring.profiles.include", "list all profiles in spring.profiles.active"),
    ("spring.profiles.group", "list all profiles in spring.profiles.active"),
    ("server.ssl", "this program serves no TLS; put a proxy in front of it"),
    ("management.server", "/actuator is served on server.port"),
];

const fn key(path: &'static str, default: &'static str, about: &'static str, kind: Kind) -> Key {
    Key { path, default, about, secret: false, alias: None, kind }
}

/// `number` in the type of its field.
fn narrow<T: TryFrom<u64>>(number: u64) -> T {
    let Ok(number) = T::try_from(number) else {
        unreachable!("the bounds of the row fit its field")
    };
    number
}

fn word<T>(word: Option<T>) -> T {
    word.expect("the row lists the words of its type")
}

fn path(text: &str) -> Option<PathBuf> {
    some(text).then(|| text.into())
}

fn above_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

fn any(_: &str) -> bool {
    true
}

fn some(text: &str) -> bool {
    !text.is_empty()
}

impl Default for Config {
    /// What an empty configuration means.
    fn default() -> Self {
        let mut config = Self::blank();
        for key in KEYS {
            key.apply(&mut config, key.default).expect("a test applies every default");
        }
        config
    }
}
