//! The configuration as the program sees it: plain typed values, one struct for each section of the file.
//!
//! Field names follow the keys of `application.yml`; the leading `kvstore.` is left out (`kvstore.storage.data-dir` is
//! `config.storage.data_dir`). Sizes are bytes. What each key means, its default and its bounds stand in `table.rs`, the
//! one list of all keys; a value that is here has passed them.
//!
//! Invariant: a [`Config`] comes from [`Config::default`] or from loading, never from the `Default` of a section, which
//! is only the blank form that the table fills.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

/// A choice between fixed words: the enum, its words, and the way back.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$about])* $variant,)+ }

        impl $name {
            /// The words of the configuration file, in the order of the variants.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word of the configuration file.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The choice that `word` stands for.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)+ _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What keeps the data of a shard.
    Engine {
        /// This project's log-structured merge tree.
        #[default]
        Lsm = "lsm",
        /// The sled library.
        Sled = "sled",
        /// An ordered map in memory: nothing survives a restart.
        Memory = "memory",
    }
}

words! {
    /// When a write is on stable storage.
    SyncMode {
        /// Before it is acknowledged. The only mode in which nothing acknowledged is lost.
        #[default]
        Always = "always",
        /// At most `kvstore.storage.sync-interval` later: a power cut loses what came since.
        Interval = "interval",
        /// When the operating system pleases.
        Never = "never",
    }
}

words! {
    /// The form of log lines.
    LogFormat {
        /// One line for people.
        #[default]
        Text = "text",
        /// One JSON object for each line.
        Json = "json",
    }
}

words! {
    /// How much is logged. A release build holds no `debug` and `trace` lines.
    LogLevel {
        /// Nothing.
        Off = "off",
        /// What needs somebody.
        Error = "error",
        /// What may need somebody.
        Warn = "warn",
        /// What changed.
        #[default]
        Info = "info",
        /// What was decided, with keys.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

/// The effective configuration of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `server.*`: the addresses that are listened on.
    pub server: Server,
    /// `logging.*`.
    pub logging: Logging,
    /// `kvstore.node.*`: who this node is.
    pub node: Node,
    /// `kvstore.storage.*`.
    pub storage: Storage,
    /// `kvstore.compaction.*`.
    pub compaction: Compaction,
    /// `kvstore.raft.*`.
    pub raft: Raft,
    /// `kvstore.hash-ring.*`.
    pub hash_ring: HashRing,
    /// `kvstore.grpc.*`.
    pub grpc: Grpc,
    /// `kvstore.cluster.*`.
    pub cluster: Cluster,
    /// `kvstore.limits.*`.
    pub limits: Limits,
    /// `kvstore.http2.*`.
    pub http2: Http2,
    /// `kvstore.shutdown.*`.
    pub shutdown: Shutdown,
    /// `kvstore.cors.*`.
    pub cors: Cors,
    /// `kvstore.backup.*`.
    pub backup: Backup,
}

/// `server.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `address`: where both ports listen.
    pub address: IpAddr,
    /// `port`: HTTP; 0 lets the system pick.
    pub port: u16,
}

impl Default for Server {
    fn default() -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 0 }
    }
}

/// `logging.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logging {
    /// `level` or `level.root`: of every logger that `levels` does not name.
    pub level: LogLevel,
    /// `level.{logger}`: by logger, named as Rust modules are (`kvstore::raft`); dots of the file have become `::`.
    pub levels: Vec<(String, LogLevel)>,
    /// `format`.
    pub format: LogFormat,
    /// `file.name`: also written there; `None` when the key is empty.
    pub file: Option<PathBuf>,
}

/// `kvstore.node.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// `id`: the name of this node, 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    pub id: String,
    /// `host`: the name or address that is told to others.
    pub host: String,
    /// `zone`: what the node fails together with; `None` when empty.
    pub zone: Option<String>,
    /// `weight`: how much it carries compared with others; 100 is usual.
    pub weight: u16,
}

impl Node {
    /// Where others reach `port` of this node, as `host:port`.
    pub fn address(&self, port: u16) -> String {
        let host = &self.host;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// `kvstore.storage.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Storage {
    /// `engine`.
    pub engine: Engine,
    /// `data-dir`: relative to the working directory.
    pub data_dir: PathBuf,
    /// `sync`.
    pub sync: SyncMode,
    /// `sync-interval`: for `sync: interval`.
    pub sync_interval: Duration,
    /// `memtable.max-size`: bytes of one memtable.
    pub memtable_max_size: usize,
    /// `open-files-max`: table files that are open at once.
    pub open_files_max: usize,
    /// `sstable.max-size`: bytes of one table file.
    pub sstable_max_size: usize,
    /// `block-cache.max-size`: bytes, for all shards of the node together.
    pub block_cache_max_size: usize,
    /// `disk-free-min`: bytes; below it writes are refused and the health is DOWN.
    pub disk_free_min: u64,
}

/// `kvstore.compaction.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compaction {
    /// `enabled`: whether tables are merged in the background.
    pub enabled: bool,
    /// `interval`: longest time between two looks for work.
    pub interval: Duration,
}

/// `kvstore.raft.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Raft {
    /// `enabled`: false is one node with the engine's own log.
    pub enabled: bool,
    /// `election-timeout`: shortest silence of a leader before an election.
    pub election_timeout: Duration,
    /// `heartbeat-interval`.
    pub heartbeat_interval: Duration,
    /// `leases`: whether callers may ask for reads that trust a leader's lease (clocks must run at nearly one rate).
    pub leases: bool,
    /// `follower-reads`: whether a replica that does not lead answers confirmed reads itself.
    pub follower_reads: bool,
    /// `stale-max`: longest silence of a leader after which stale reads are still answered; `None` when 0.
    pub stale_max: Option<Duration>,
    /// `log-keep`: entries that stay in a shard's log behind a snapshot.
    pub log_keep: u64,
    /// `snapshot-log-size`: bytes that a shard writes between two snapshots.
    pub snapshot_log_size: u64,
    /// `log-max-size`: bytes of the whole log above which the oldest part has to go.
    pub log_max_size: u64,
}

/// `kvstore.hash-ring.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HashRing {
    /// `virtual-nodes-per-node`.
    pub virtual_nodes_per_node: u32,
    /// `replication-factor`: nodes that hold each shard.
    pub replication_factor: u32,
    /// `shards`: fixed when the cluster is created.
    pub shards: u32,
}

/// `kvstore.grpc.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grpc {
    /// `enabled`: whether the gRPC port is opened.
    pub enabled: bool,
    /// `port`: gRPC and peers; 0 lets the system pick.
    pub port: u16,
}

/// A node by name, and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its `kvstore.node.id`.
    pub node: String,
    /// `host:port` of its gRPC port.
    pub address: String,
}

/// `kvstore.cluster.*`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// `members`: the nodes that create the cluster together, as `id=host:port`.
    pub members: Vec<Member>,
    /// `join`: `host:port` of nodes of a cluster that exists.
    pub join: Vec<String>,
    /// `secret`, or the first line of `secret-file`: what peers prove to each other; empty means none.
    pub secret: String,
    /// `secret-file`: where the secret was read from.
    pub secret_file: Option<PathBuf>,
    /// `insecure`: whether peers may do without a secret on an address that others reach.
    pub insecure: bool,
    /// `replace-after`: how long a member may be away before others take over what it holds; `None` (never) when 0.
    pub replace_after: Option<Duration>,
    /// `move-rate`: bytes a second of each transfer of a snapshot's files; `None` (as fast as it goes) when 0.
    pub move_rate: Option<NonZeroU64>,
}

impl Cluster {
    /// Whether it names other nodes.
    pub const fn is_set(&self) -> bool {
        !self.members.is_empty() || !self.join.is_empty()
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secret = if self.secret.is_empty() { "" } else { super::MASK };
        f.debug_struct("Cluster")
            .field("members", &self.members)
            .field("join", &self.join)
            .field("secret", &secret)
            .field("secret_file", &self.secret_file)
            .field("insecure", &self.insecure)
            .field("replace_after", &self.replace_after)
            .field("move_rate", &self.move_rate)
            .finish()
    }
}

/// `kvstore.limits.*`: sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// `key-size`: longest key.
    pub key_size: usize,
    /// `value-size`: longest value.
    pub value_size: usize,
    /// `batch-entries`: most entries of a batch.
    pub batch_entries: usize,
    /// `batch-size`: most bytes of keys and values in a batch.
    pub batch_size: usize,
    /// `page-items-default`: items of a page when the request does not say.
    pub page_items_default: usize,
    /// `page-items`: most items of a page.
    pub page_items: usize,
    /// `page-size`: most bytes of keys and values in a page.
    pub page_size: usize,
    /// `request-size`: most bytes of a request after decompression.
    pub request_size: usize,
    /// `deadline-default`: deadline of a call that names none.
    pub deadline_default: Duration,
    /// `deadline-max`: longer deadlines are cut to this.
    pub deadline_max: Duration,
    /// `in-flight-requests`: most requests that are worked on at a time.
    pub in_flight_requests: usize,
    /// `in-flight-size`: most bytes of those requests.
    pub in_flight_size: usize,
    /// `session-operations`: most operations of a session that wait for their answer.
    pub session_operations: usize,
    /// `session-size`: most bytes of those operations.
    pub session_size: usize,
}

/// `kvstore.http2.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http2 {
    /// `max-concurrent-streams`: of one connection.
    pub max_concurrent_streams: u32,
    /// `keep-alive-interval`: silence before a ping; `None` when 0.
    pub keep_alive_interval: Option<Duration>,
    /// `keep-alive-timeout`: wait for the answer before the connection is closed.
    pub keep_alive_timeout: Duration,
    /// `connection-age`: after which a connection is told to go away; `None` when 0.
    pub connection_age: Option<Duration>,
    /// `connection-age-grace`: then how long its calls may still run.
    pub connection_age_grace: Duration,
    /// `connections-max`: open connections, both ports together.
    pub connections_max: usize,
}

/// `kvstore.shutdown.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// `timeout`: how long calls may still run after the signal to stop.
    pub timeout: Duration,
}

/// `kvstore.cors.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cors {
    /// `origins`: pages that may call from a browser, as `https://host[:port]`, or `*` for all; none by default.
    pub origins: Vec<String>,
}

/// `kvstore.backup.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backup {
    /// `dir`: the only directory under which backups are written; `None` (the default) refuses backups.
    pub dir: Option<PathBuf>,
}

impl Config {
    /// All sections blank: what the table of keys fills.
    pub(super) fn blank() -> Self {
        Self {
            server: Server::default(),
            logging: Logging::default(),
            node: Node::default(),
            storage: Storage::default(),
            compaction: Compaction::default(),
            raft: Raft::default(),
            hash_ring: HashRing::default(),
            grpc: Grpc::default(),
            cluster: Cluster::default(),
            limits: Limits::default(),
            http2: Http2::default(),
            shutdown: Shutdown::default(),
            cors: Cors::default(),
            backup: Backup::default(),
        }
    }
}
