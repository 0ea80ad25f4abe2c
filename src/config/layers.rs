//! The layers below the defaults: files, environment and `--set`, each turned into [`Item`]s in the order of precedence.
//!
//! Here names become keys and unknown ones become problems; values are still text. Reading is bounded: a file by
//! [`FILE_BYTES_MAX`], a list of the environment by [`LIST_ITEMS_MAX`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::keys::Key;
use super::names::{
    canonical, environment_name, is_service_link, nearest, shown, strip_environment,
};
use super::placeholder;
use super::problem::{Origin, Problem};
use super::table::{FOREIGN, KEYS, REFUSED};
use super::yaml::{self, Entry, Given};
use super::{CLIENT_ENVIRONMENT, Sources, TEST_ENVIRONMENT};

/// Largest configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Most elements of a list given as `NAME_0`, `NAME_1`, ...
const LIST_ITEMS_MAX: usize = 1_024;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Target {
    /// The row of [`KEYS`].
    Key(usize),
    /// The level of this logger, named as Rust modules are.
    Logger(String),
    /// A key of the replaced system, in canonical form.
    Foreign(String),
}

/// One value of one layer.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub target: Target,
    pub origin: Origin,
    /// The key as it was written.
    pub key: String,
    pub text: String,
    /// Why it has no effect, for foreign keys.
    pub ignored: Option<&'static str>,
}

/// All that the layers hold, the weakest first, and what is wrong with them.
#[derive(Default)]
pub(super) struct Layers {
    pub items: Vec<Item>,
    pub problems: Vec<Problem>,
    pub notes: Vec<String>,
}

/// What a path stands for.
enum Meaning {
    Target(Target, Option<&'static str>),
    /// The head of some keys.
    Section,
    Refused(&'static str),
    Unknown,
}

/// The row of the documented `path`.
pub(super) fn row(path: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.path == path)
}

fn meaning(path: &str) -> Meaning {
    let name = canonical(path);
    let below = |head: &str| {
        name.strip_prefix(&canonical(head))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if let Some(index) = KEYS.iter().position(|key| canonical(key.path) == name) {
        return Meaning::Target(Target::Key(index), None);
    }
    if let Some(logger) = path.splitn(3, '.').nth(2).filter(|_| name.starts_with("logging.level."))
    {
        let root = logger.eq_ignore_ascii_case("root");
        let target = match row("logging.level").filter(|_| root) {
            Some(index) => Target::Key(index),
            None => Target::Logger(logger.replace('.', "::")),
        };
        return Meaning::Target(target, None);
    }
    if let Some((_, why)) = REFUSED.iter().find(|(head, _)| below(head)) {
        return Meaning::Refused(why);
    }
    if let Some((_, why)) = FOREIGN.iter().find(|(head, _)| below(head)) {
        return Meaning::Target(Target::Foreign(name), Some(why));
    }
    let head = format!("{name}.");
    if KEYS.iter().any(|key| canonical(key.path).starts_with(&head)) {
        return Meaning::Section;
    }
    Meaning::Unknown
}

impl Layers {
    /// Reads all layers.
    pub(super) fn read(sources: &Sources) -> Self {
        let mut layers = Self::default();
        let directory = layers.base_file(sources);
        for profile in layers.profiles(sources) {
            layers.profile_file(&directory, &profile);
        }
        layers.environment(&sources.environment);
        for assignment in &sources.set {
            layers.assignment(assignment);
        }
        layers
    }

    fn problem(&mut self, origin: Option<Origin>, key: &str, message: impl Into<String>) {
        self.problems.push(Problem {
            origin,
            key: shown(key).into_owned(),
            message: message.into(),
        });
    }

    /// Reads `--config`, or `application.yml` where there is one; the directory is that of the profiles' files.
    fn base_file(&mut self, sources: &Sources) -> PathBuf {
        if let Some(file) = &sources.file {
            // Messages name the file as the caller did.
            self.file(&sources.working_dir, file, true);
            let path = sources.working_dir.join(file);
            return path.parent().unwrap_or(&sources.working_dir).to_path_buf();
        }
        let found = ["application.yml", "application.yaml"]
            .iter()
            .any(|name| self.file(&sources.working_dir, Path::new(name), false));
        if !found {
            let directory = sources.working_dir.display();
            self.notes.push(format!("no application.yml in {directory}: defaults are used"));
        }
        sources.working_dir.clone()
    }

    /// The active profiles, the weakest first.
    fn profiles(&mut self, sources: &Sources) -> Vec<String> {
        let variable = "SPRING_PROFILES_ACTIVE";
        let environment = sources
            .environment
            .iter()
            .find(|(name, value)| name == variable && !value.is_empty())
            .map(|(_, value)| (Origin::Environment(variable.to_owned()), value.clone()));
        let active = Target::Foreign(canonical("spring.profiles.active"));
        let in_file = self.items.iter().find(|item| item.target == active);
        let given =
            (sources.profile.clone().map(|names| (Origin::CommandLine("--profile"), names)))
                .or(environment)
                .or_else(|| in_file.map(|item| (item.origin.clone(), item.text.clone())));
        // Spring's name for "none chosen".
        let Some((origin, names)) = given else { return vec!["default".to_owned()] };
        let lookup = |name: &str| super::lookup(name, sources, &self.items);
        let names = match placeholder::resolve(&names, &lookup) {
            Ok(names) => names,
            Err(message) => {
                self.problem(Some(origin), "spring.profiles.active", message);
                return Vec::new();
            }
        };
        let mut profiles = super::value::list(&names);
        profiles.retain(|name| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            let allowed = name.len() <= 64 && name.bytes().all(plain) && !name.starts_with('.');
            if !allowed {
                self.problem(
                    Some(origin.clone()),
                    "spring.profiles.active",
                    format!(
                        "\"{}\" is not allowed: names of at most 64 characters of A-Z a-z 0-9 . _ -",
                        shown(name)
                    ),
                );
            }
            allowed
        });
        profiles
    }

    fn profile_file(&mut self, directory: &Path, profile: &str) {
        let found = ["yml", "yaml"].iter().any(|extension| {
            self.file(directory, Path::new(&format!("application-{profile}.{extension}")), false)
        });
        if !found && profile != "default" {
            self.notes.push(format!("profile {profile} has no file in {}", directory.display()));
        }
    }

    /// Reads a file; false when it is not there, which is a problem only for one that `must` be.
    fn file(&mut self, directory: &Path, name: &Path, must: bool) -> bool {
        let path = directory.join(name);
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must => return false,
            Err(error) => {
                self.problem(None, &name.display().to_string(), format!("cannot be read: {error}"));
                return true;
            }
        };
        self.notes.push(format!("read {}", path.display()));
        match yaml::parse(&text) {
            Ok(entries) => self.entries(name, entries),
            Err(error) => {
                let origin = Origin::File(name.to_path_buf(), error.line);
                self.problem(Some(origin), "", shown_long(&error.why));
            }
        }
        true
    }

    fn entries(&mut self, file: &Path, entries: Vec<Entry>) {
        let mut seen: HashMap<Target, u64> = HashMap::new();
        for Entry { path, line, value } in entries {
            let origin = Origin::File(file.to_path_buf(), line);
            if matches!(meaning(&path), Meaning::Section) && value == Given::Nothing {
                continue;
            }
            let Some((target, ignored)) = self.known(&path, &origin) else { continue };
            if let Some(first) = seen.insert(target.clone(), line) {
                self.problem(Some(origin), &path, format!("is already set on line {first}"));
                continue;
            }
            let is_list = match &target {
                Target::Key(index) => KEYS[*index].is_list(),
                Target::Logger(_) => false,
                Target::Foreign(_) => true,
            };
            let text = match value {
                Given::Nothing => String::new(),
                Given::Text(text) => text,
                Given::List(items) if is_list => items.join(","),
                Given::Nested if ignored.is_some() => "[...]".to_owned(),
                Given::List(_) | Given::Nested => {
                    let wanted = if let Target::Key(index) = target {
                        KEYS[index].allowed()
                    } else {
                        "one value".to_owned()
                    };
                    self.problem(Some(origin), &path, format!("a list is not allowed: {wanted}"));
                    continue;
                }
            };
            self.items.push(Item { target, origin, key: path, text, ignored });
        }
    }

    /// What `path` stands for; a problem when that is nothing.
    fn known(&mut self, path: &str, origin: &Origin) -> Option<(Target, Option<&'static str>)> {
        let message = match meaning(path) {
            Meaning::Target(target, ignored) => return Some((target, ignored)),
            Meaning::Refused(why) => format!("is not supported: {why}"),
            Meaning::Section => "is a section and takes no value".to_owned(),
            Meaning::Unknown => {
                let names = KEYS.iter().map(|key| key.path);
                no_such("key", nearest(&path.to_ascii_lowercase(), names))
            }
        };
        self.problem(Some(origin.clone()), path, message);
        None
    }

    /// The variables that name keys. Empty ones count as absent: that is what `NAME: ${NAME}` in a compose file leaves.
    fn environment(&mut self, variables: &[(String, String)]) {
        let mut variables: Vec<&(String, String)> = variables
            .iter()
            .filter(|(name, value)| !value.is_empty() && !is_service_link(name, value))
            .collect();
        variables.sort();
        let mut known = vec![false; variables.len()];
        for (index, key) in KEYS.iter().enumerate() {
            self.environment_key(index, key, &variables, &mut known);
        }
        for ((name, value), known) in variables.into_iter().zip(known) {
            if !known {
                self.environment_other(name, value);
            }
        }
    }

    /// The value of one key, by its own name, as list elements, or by its alias, the strongest first.
    fn environment_key(
        &mut self,
        index: usize,
        key: &Key,
        variables: &[&(String, String)],
        known: &mut [bool],
    ) {
        let mut whole: Vec<(&str, String)> = Vec::new();
        let mut elements: Vec<(usize, &str, &str)> = Vec::new();
        let mut alias = None;
        for (position, (name, value)) in variables.iter().enumerate() {
            let element = |rest: &str| rest.strip_prefix('_')?.parse::<usize>().ok();
            match strip_environment(name, key.path) {
                Some("") => whole.push((name, value.clone())),
                Some(rest) if key.is_list() && element(rest).is_some() => {
                    elements.push((element(rest).unwrap_or(0), name, value));
                }
                Some(rest) if key.path == "logging.level" && rest.eq_ignore_ascii_case("_root") => {
                    whole.push((name, value.clone()));
                }
                _ if key.alias == Some(name) => alias = Some((name.as_str(), value.clone())),
                _ => continue,
            }
            known[position] = true;
        }
        elements.sort_unstable();
        if let Some((_, first, _)) = elements.first() {
            let in_order =
                elements.iter().enumerate().all(|(wanted, (found, ..))| wanted == *found);
            if !in_order || elements.len() > LIST_ITEMS_MAX {
                self.environment_problem(
                    first,
                    "elements of a list are numbered from _0 without gaps",
                );
                return;
            }
            let values: Vec<&str> = elements.iter().map(|(_, _, value)| *value).collect();
            whole.push((first, values.join(",")));
        }
        if let [(first, a), .., (second, b)] = whole.as_slice()
            && a != b
        {
            self.environment_problem(
                second,
                &format!("contradicts {first}, which is the same key"),
            );
            return;
        }
        if let Some((name, text)) = whole.into_iter().next().or(alias) {
            let origin = Origin::Environment(name.to_owned());
            let (target, key) = (Target::Key(index), name.to_owned());
            self.items.push(Item { target, origin, key, text, ignored: None });
        }
    }

    /// A variable that names no row of the table.
    fn environment_other(&mut self, name: &str, value: &str) {
        if let Some(logger) =
            strip_environment(name, "logging.level.").filter(|rest| !rest.is_empty())
        {
            // Spring's rule: case is lost, `_` stands for a dot.
            let target = Target::Logger(logger.to_lowercase().replace('_', "::"));
            let origin = Origin::Environment(name.to_owned());
            let (key, text) = (name.to_owned(), value.to_owned());
            self.items.push(Item { target, origin, key, text, ignored: None });
            return;
        }
        let upper = name.to_ascii_uppercase();
        let ours = upper.starts_with("KVSTORE_")
            && !upper.starts_with(TEST_ENVIRONMENT)
            && !CLIENT_ENVIRONMENT.contains(&upper.as_str());
        if ours {
            let names: Vec<String> = KEYS.iter().map(|key| environment_name(key.path)).collect();
            let message = no_such("key", nearest(&upper, names.iter().map(String::as_str)));
            self.environment_problem(name, &message);
        }
    }

    fn environment_problem(&mut self, name: &str, message: &str) {
        self.problem(Some(Origin::Environment(name.to_owned())), name, message);
    }

    /// One `--set key=value`.
    fn assignment(&mut self, assignment: &str) {
        let origin = Origin::CommandLine("--set");
        let Some((path, value)) = assignment.split_once('=') else {
            self.problem(Some(origin), assignment, "is not of the form key=value");
            return;
        };
        let path = path.trim();
        if let Some((target, ignored)) = self.known(path, &origin) {
            let (key, text) = (path.to_owned(), value.to_owned());
            self.items.push(Item { target, origin, key, text, ignored });
        }
    }
}

/// `no such key`, with the one that was perhaps meant.
fn no_such(what: &str, meant: Option<&str>) -> String {
    meant.map_or_else(
        || format!("no such {what}; `kvstore config` lists all"),
        |name| format!("no such {what}; did you mean {name}?"),
    )
}

/// A message of the parser, which may quote a whole line.
fn shown_long(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ").chars().take(400).collect()
}

/// The text of a file of at most [`FILE_BYTES_MAX`] bytes.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}
