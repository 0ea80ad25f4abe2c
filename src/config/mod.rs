//! Configuration: from files, environment and command line to one typed [`Config`].
//!
//! Layers, the later one wins: defaults, `application.yml`, `application-{profile}.yml`, environment, `--set`. All keys
//! stand in one table ([`KEYS`]); a key that is not there, a value that is not allowed and a combination that cannot work
//! refuse the start, and all of them are told at once.
//!
//! Synchronous; the environment and the working directory are handed in, so that tests need no global state. Called by
//! the command line before anything else starts.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

mod check;
mod keys;
mod layers;
mod names;
mod placeholder;
mod problem;
mod settings;
mod table;
#[cfg(test)]
mod tests;
mod value;
mod yaml;

pub use keys::Key;
pub use names::environment_name;
pub use problem::{ConfigError, Origin, Problem};
pub use settings::{
    Backup, Cluster, Compaction, Config, Cors, Engine, Grpc, HashRing, Http2, Limits, LogFormat,
    LogLevel, Logging, Member, Node, Raft, Server, Shutdown, Storage, SyncMode,
};
pub use table::{KEYS, REPLICATION_FACTOR_MAX};
pub use value::{duration, endpoint, size};

use layers::{Item, Layers, Target, row};

/// Variables that begin as the server's do but belong to the command line and the clients.
pub const CLIENT_ENVIRONMENT: &[&str] = &[
    "KVSTORE_ENDPOINT",
    "KVSTORE_ENDPOINTS",
    "KVSTORE_HTTP",
    "KVSTORE_OUTPUT",
    "KVSTORE_TIMEOUT",
    "KVSTORE_CONFIG",
    "KVSTORE_PROFILE",
];

/// Variables with this beginning belong to tests.
pub const TEST_ENVIRONMENT: &str = "KVSTORE_TEST_";

/// What is shown instead of a secret.
pub const MASK: &str = "******";

/// Where a configuration is looked for.
#[derive(Clone, Default)]
pub struct Sources {
    /// Directory of `application.yml` when `file` is absent, and of relative paths of `file`.
    pub working_dir: PathBuf,
    /// `--config FILE`; it must exist.
    pub file: Option<PathBuf>,
    /// `--profile A,B`; over `SPRING_PROFILES_ACTIVE`.
    pub profile: Option<String>,
    /// `--set key=value`, in order.
    pub set: Vec<String>,
    /// The environment, such as [`environment`] gives it.
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

/// The environment of this process. Variables whose name is not UTF-8 are left out, for no key has such a name.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        })
        .collect()
}

/// Reads all layers, or tells all that is wrong with them.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let Layers { items, mut problems, notes } = Layers::read(sources);
    let mut config = Config::default();
    let mut bad: HashSet<Target> = HashSet::new();
    let last: HashMap<Target, usize> =
        items.iter().enumerate().map(|(index, item)| (item.target.clone(), index)).collect();
    let lookup = |name: &str| lookup(name, sources, &items);

    let mut values: HashMap<Target, Setting> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let effective = last.get(&item.target) == Some(&index);
        // A variable of one layer may be missing where another layer says the value.
        let resolved = match placeholder::resolve(&item.text, &lookup) {
            Err(_) if !effective => continue,
            // Nobody reads a foreign value.
            Err(_) if item.ignored.is_some() => Ok(item.text.clone()),
            other => other,
        };
        match resolved.and_then(|text| apply(&mut config, item, &text).map(|()| text)) {
            Ok(text) => {
                values.insert(item.target.clone(), setting(item, &text));
            }
            Err(message) => {
                bad.insert(item.target.clone());
                let (origin, key) = (Some(item.origin.clone()), item.key.clone());
                problems.push(Problem { origin, key, message });
            }
        }
    }

    let is_bad = |key: &str| row(key).is_some_and(|index| bad.contains(&Target::Key(index)));
    let mut conflicts = check::conflicts(&config, &is_bad);
    if conflicts.is_empty() && !is_bad("kvstore.cluster.secret-file") {
        conflicts.extend(check::read_secret(&mut config, &sources.working_dir).err());
    }
    for (key, message) in conflicts {
        let value = row(key).and_then(|index| values.get(&Target::Key(index)));
        let origin = Some(value.map_or(Origin::Default, |setting| setting.origin.clone()));
        problems.push(Problem { origin, key: key.to_owned(), message });
    }
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    Ok(Loaded { config, settings: listing(values), notes })
}

/// The text of a placeholder's name: a variable, else a key of any layer, else a key's default.
fn lookup(name: &str, sources: &Sources, items: &[Item]) -> Option<String> {
    let variable = sources.environment.iter().find(|(variable, _)| variable == name);
    if let Some((_, value)) = variable {
        return Some(value.clone());
    }
    let wanted = names::canonical(name);
    let index = KEYS.iter().position(|key| names::canonical(key.path) == wanted);
    let target = index.map_or_else(|| Target::Foreign(wanted), Target::Key);
    let given = items.iter().rev().find(|item| item.target == target).map(|item| item.text.clone());
    given.or_else(|| index.map(|index| KEYS[index].default.to_owned()))
}

/// Stores one value.
fn apply(config: &mut Config, item: &Item, text: &str) -> Result<(), String> {
    let refuse = |secret: bool, not: keys::NotAllowed| {
        let value =
            if secret { "the value".to_owned() } else { format!("\"{}\"", names::shown(text)) };
        let meant =
            not.suggestion.map(|word| format!("; did you mean {word}?")).unwrap_or_default();
        format!("{value} is not allowed: {}{meant}", not.allowed)
    };
    match &item.target {
        Target::Key(index) => {
            let key = &KEYS[*index];
            key.apply(config, text.trim()).map_err(|not| refuse(key.secret, not))
        }
        Target::Logger(logger) => {
            let level = keys::level(text.trim()).ok_or_else(|| {
                let suggestion =
                    names::nearest(&text.to_ascii_lowercase(), LogLevel::WORDS.iter().copied());
                let allowed = keys::any_of(LogLevel::WORDS);
                refuse(
                    false,
                    keys::NotAllowed { allowed, suggestion: suggestion.map(str::to_owned) },
                )
            })?;
            config.logging.levels.retain(|(known, _)| known != logger);
            config.logging.levels.push((logger.clone(), level));
            Ok(())
        }
        Target::Foreign(_) => Ok(()),
    }
}

/// The line of the listing for a value that was given.
fn setting(item: &Item, text: &str) -> Setting {
    let (key, secret) = match &item.target {
        Target::Key(index) => (KEYS[*index].path.to_owned(), KEYS[*index].secret),
        Target::Logger(logger) => (format!("logging.level.{logger}"), false),
        // Passwords of the old system's data sources must not show either.
        Target::Foreign(_) => (item.key.clone(), names::sounds_secret(&item.key)),
    };
    let value = if secret && !text.is_empty() { MASK.to_owned() } else { text.to_owned() };
    Setting { key, value, origin: item.origin.clone(), ignored: item.ignored }
}

/// All keys in the order of the table, then loggers, then what is ignored, both by name.
fn listing(mut values: HashMap<Target, Setting>) -> Vec<Setting> {
    let mut settings: Vec<Setting> = KEYS
        .iter()
        .enumerate()
        .map(|(index, key)| {
            values.remove(&Target::Key(index)).unwrap_or_else(|| Setting {
                key: key.path.to_owned(),
                value: key.default.to_owned(),
                origin: Origin::Default,
                ignored: None,
            })
        })
        .collect();
    let mut rest: Vec<Setting> = values.into_values().collect();
    rest.sort_by(|a, b| (a.ignored.is_some(), &a.key).cmp(&(b.ignored.is_some(), &b.key)));
    settings.append(&mut rest);
    settings
}
