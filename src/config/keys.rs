//! What a key is: its path, how its value is read and bounded, its default, its one line of documentation.
//!
//! Everything about a key follows from its row in [`table`](super::table): reading, bounds, the names it has in the
//! environment, the listing of `kvstore config`, the reference in the documentation.

use std::net::IpAddr;
use std::time::Duration;

use super::settings::{Config, LogLevel};
use super::value;

/// One key of the configuration.
pub struct Key {
    /// As written in the documentation: `kvstore.storage.data-dir`.
    pub path: &'static str,
    /// The text that stands for it when nobody says anything.
    pub default: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Whether its value is masked wherever it is shown.
    pub secret: bool,
    /// A second name in the environment, weaker than the one that follows from the path.
    pub alias: Option<&'static str>,
    pub(super) kind: Kind,
}

/// How a value is read, what is allowed, and where it goes. Bounds are inclusive; durations are bounded in milliseconds.
pub(super) enum Kind {
    Switch(fn(&mut Config, bool)),
    Count(u64, u64, fn(&mut Config, u64)),
    Size(u64, u64, fn(&mut Config, u64)),
    Duration(u64, u64, fn(&mut Config, Duration)),
    /// One of some words, in any case.
    Word(&'static [&'static str], fn(&mut Config, &str)),
    Level(fn(&mut Config, LogLevel)),
    Address(fn(&mut Config, IpAddr)),
    /// Text: what is allowed in words, the check, the place.
    Text(&'static str, fn(&str) -> bool, fn(&mut Config, &str)),
    /// A list: what each item has to be in words, the check of one item, the place.
    List(&'static str, fn(&str) -> bool, fn(&mut Config, Vec<String>)),
}

/// The value of a key is not allowed: what is, in words, and the word that was perhaps meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotAllowed {
    pub allowed: String,
    pub suggestion: Option<String>,
}

impl Key {
    /// A key with an own name in the environment.
    pub(super) const fn alias(mut self, name: &'static str) -> Self {
        self.alias = Some(name);
        self
    }

    /// A key whose value is never shown.
    pub(super) const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// Whether the value may be a list in YAML.
    pub(super) const fn is_list(&self) -> bool {
        matches!(self.kind, Kind::List(..))
    }

    /// What values are allowed, in words: `a size from 1B to 4KB`.
    pub fn allowed(&self) -> String {
        match &self.kind {
            Kind::Switch(_) => "true or false".to_owned(),
            Kind::Count(min, max, _) => format!("a whole number from {min} to {max}"),
            Kind::Size(min, max, _) => {
                format!("a size from {} to {}", show_size(*min), show_size(*max))
            }
            Kind::Duration(min, max, _) => {
                format!("a duration from {} to {}", show_duration(*min), show_duration(*max))
            }
            Kind::Word(words, _) => any_of(words),
            Kind::Level(_) => any_of(LogLevel::WORDS),
            Kind::Address(_) => "an IP address".to_owned(),
            Kind::Text(allowed, _, _) => (*allowed).to_owned(),
            Kind::List(allowed, _, _) => format!("a list, each item {allowed}"),
        }
    }

    /// Reads `text` and stores it in `config`.
    pub(super) fn apply(&self, config: &mut Config, text: &str) -> Result<(), NotAllowed> {
        let within = |min: &u64, max: &u64, n: &u64| (*min..=*max).contains(n);
        let done = match &self.kind {
            Kind::Switch(put) => value::switch(text).map(|on| put(config, on)),
            Kind::Count(min, max, put) => {
                value::count(text).filter(|n| within(min, max, n)).map(|n| put(config, n))
            }
            Kind::Size(min, max, put) => {
                value::size(text).filter(|n| within(min, max, n)).map(|n| put(config, n))
            }
            Kind::Duration(min, max, put) => value::duration(text)
                .filter(|d| (u128::from(*min)..=u128::from(*max)).contains(&d.as_millis()))
                .map(|d| put(config, d)),
            Kind::Word(words, put) => words
                .iter()
                .find(|word| word.eq_ignore_ascii_case(text))
                .map(|word| put(config, word)),
            Kind::Level(put) => level(text).map(|level| put(config, level)),
            Kind::Address(put) => value::address(text).map(|address| put(config, address)),
            Kind::Text(_, check, put) => check(text).then(|| put(config, text)),
            Kind::List(_, check, put) => {
                let items = value::list(text);
                items.iter().all(|item| check(item)).then(|| put(config, items))
            }
        };
        done.ok_or_else(|| NotAllowed { allowed: self.allowed(), suggestion: self.suggest(text) })
    }

    /// The word that `text` perhaps should have been.
    fn suggest(&self, text: &str) -> Option<String> {
        let words = match &self.kind {
            Kind::Word(words, _) => words,
            Kind::Level(_) => LogLevel::WORDS,
            _ => return None,
        };
        super::names::nearest(&text.to_ascii_lowercase(), words.iter().copied()).map(str::to_owned)
    }
}

/// A level in Spring's words too: `WARN`, `FATAL`, and `false` for off, which is what YAML 1.1 makes of it.
pub(super) fn level(text: &str) -> Option<LogLevel> {
    match text.to_ascii_lowercase().as_str() {
        "fatal" => Some(LogLevel::Error),
        "warning" => Some(LogLevel::Warn),
        "false" => Some(LogLevel::Off),
        word => LogLevel::from_word(word),
    }
}

/// `lsm, sled or memory`.
pub(super) fn any_of(words: &[&str]) -> String {
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

/// Bytes in the largest unit that leaves no fraction.
fn show_size(bytes: u64) -> String {
    show(bytes, &[("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)], "B")
}

/// Milliseconds in the largest unit that leaves no fraction.
fn show_duration(millis: u64) -> String {
    show(millis, &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)], "ms")
}

fn show(number: u64, units: &[(&str, u64)], smallest: &str) -> String {
    let fits = |unit: u64| number >= unit && number.is_multiple_of(unit);
    units.iter().find(|(_, unit)| fits(*unit)).map_or_else(
        || format!("{number}{smallest}"),
        |(name, unit)| format!("{}{name}", number / unit),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_shown_in_the_largest_whole_unit() {
        assert_eq!(show_size(104_857_600), "100MB");
        assert_eq!(show_size(1_000), "1000B");
        assert_eq!(show_size(0), "0B");
        assert_eq!(show_duration(300_000), "5m");
        assert_eq!(show_duration(1_500), "1500ms");
    }

    #[test]
    fn words_are_listed_as_one_says_them() {
        assert_eq!(any_of(&["a"]), "a");
        assert_eq!(any_of(&["a", "b"]), "a or b");
        assert_eq!(any_of(&["a", "b", "c"]), "a, b or c");
    }
}
