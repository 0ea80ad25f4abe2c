//! Configuration: from files, environment and command line to one typed [`Config`].
//!
//! Layers, the later one wins: defaults, `application.yml`, `application-{profile}.yml`, environment, `--set`. All keys
//! stand in one table ([`KEYS`]); a key that is not there, a value that is not allowed and a combination that cannot work
//! refuse the start, and all of them are told at once.
//!
//! Synchronous; the environment and the working directory are handed in, so that tests need no global state. Called by
//! the command line before anything else starts.

use std::path::PathBuf;

mod keys;
mod names;
mod problem;
mod settings;
mod table;
mod value;

pub use keys::Key;
pub use names::environment_name;
pub use problem::{ConfigError, Origin, Problem};
pub use settings::{
    Backup, Cluster, Compaction, Config, Cors, Engine, Grpc, HashRing, Http2, Limits, LogFormat,
    LogLevel, Logging, Member, Node, Raft, Server, Shutdown, Storage, SyncMode,
};
pub use table::KEYS;

/// What is shown instead of a secret.
pub const MASK: &str = "******";

/// Where a configuration is looked for.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Directory of `application.yml` when `file` is absent, and of relative paths of `file`.
    pub working_dir: PathBuf,
    /// `--config FILE`; it must exist.
    pub file: Option<PathBuf>,
    /// `--profile A,B`; over `SPRING_PROFILES_ACTIVE`.
    pub profile: Option<String>,
    /// `--set key=value`, in order.
    pub set: Vec<String>,
    /// The environment, such as `std::env::vars()`.
    pub environment: Vec<(String, String)>,
}

/// One effective value, for people. The value of a secret is [`MASK`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The documented path.
    pub key: String,
    /// The text, as it was given.
    pub value: String,
    /// Who gave it.
    pub origin: Origin,
    /// Why it has no effect, for keys of the replaced system.
    pub ignored: Option<&'static str>,
}

/// A configuration that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// All of them with their origin: the keys in the order of [`KEYS`], then loggers, then what is ignored.
    pub settings: Vec<Setting>,
    /// What was read or looked for, for the log: files, profiles without a file.
    pub notes: Vec<String>,
}
