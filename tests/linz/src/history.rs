//! What clients did and saw.
//!
//! Real time is the order in which [`History::call`] and [`History::returns`] are called: a client calls `call` before it sends, and
//! `returns` after it has the answer. The times that callers give are for readers of a violation only.
//!
//! A history takes a fixed number of operations; when it is full, `call` says so, and the load ends.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a Put stores; never twice under the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u64);

/// The version of a key. As a condition, 0 means "absent".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Reads the key, linearizably.
    Get,
    /// Stores a value.
    Put {
        /// The value.
        value: Value,
        /// Only if this is the key's version.
        if_version: Option<Version>,
    },
    /// Removes the key.
    Delete {
        /// Only if this is the key's version.
        if_version: Option<Version>,
    },
}

impl Action {
    /// A Put without condition.
    pub const fn put(value: Value) -> Self {
        Self::Put { value, if_version: None }
    }

    /// A Put on a condition.
    pub const fn put_if(value: Value, version: Version) -> Self {
        Self::Put { value, if_version: Some(version) }
    }

    /// A Delete without condition.
    pub const fn delete() -> Self {
        Self::Delete { if_version: None }
    }

    /// A Delete on a condition.
    pub const fn delete_if(version: Version) -> Self {
        Self::Delete { if_version: Some(version) }
    }

    /// The condition on the version, if there is one.
    pub const fn if_version(self) -> Option<Version> {
        match self {
            Self::Get => None,
            Self::Put { if_version, .. } | Self::Delete { if_version } => if_version,
        }
    }
}

/// What a client was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// To a Get: what is there.
    Found(Value, Version),
    /// To a Get: nothing is there.
    Missing,
    /// To a Put: the version it was given.
    Stored(Version),
    /// To a Delete: whether the key was there.
    Deleted(bool),
    /// To a Put or Delete on a condition: it did not hold.
    Mismatch,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Ok(Answer),
    /// It was certainly not applied, and never will be.
    Failed,
    /// A write may be applied at any time after its call, or never.
    Unknown,
}

/// One operation of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// The client, for readers.
    pub client: u32,
    /// What it asked for.
    pub action: Action,
    /// How it ended. Unknown as long as it has not.
    pub outcome: Outcome,
    /// Position of the call among all calls and returns.
    pub called: u64,
    /// Position of the return. `u64::MAX`: it has not returned.
    pub returned: u64,
    /// The caller's time of the call, for readers.
    pub called_at: u64,
    /// The caller's time of the return, for readers.
    pub returned_at: u64,
}

/// An operation that is going on.
#[derive(Debug)]
#[must_use = "what does not return counts as unknown"]
pub struct Call {
    key: usize,
    operation: usize,
}

/// How many operations ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answered.
    pub ok: usize,
    /// Certainly not applied.
    pub failed: usize,
    /// Unknown, or not returned.
    pub unknown: usize,
}

/// All operations of a run, in the order of their calls for each key. Any number of clients record into it at the same time.
#[derive(Debug)]
pub struct History {
    records: Mutex<Records>,
}

#[derive(Debug)]
struct Records {
    /// Calls and returns so far.
    events: u64,
    /// How many more operations there may be.
    room: usize,
    names: HashMap<String, usize>,
    keys: Vec<(String, Vec<Operation>)>,
}

impl History {
    /// An empty history with room for so many operations.
    pub fn new(operations_max: usize) -> Self {
        let records =
            Records { events: 0, room: operations_max, names: HashMap::new(), keys: Vec::new() };
        Self { records: Mutex::new(records) }
    }

    /// A client begins an operation. `None`: the history is full.
    pub fn call(&self, client: u32, key: &str, action: Action, at: u64) -> Option<Call> {
        let mut records = self.records();
        records.room = records.room.checked_sub(1)?;
        let called = records.next();
        let key = records.key(key);
        let operations = &mut records.keys[key].1;
        operations.push(Operation {
            client,
            action,
            outcome: Outcome::Unknown,
            called,
            returned: u64::MAX,
            called_at: at,
            returned_at: at,
        });
        Some(Call { key, operation: operations.len() - 1 })
    }

    /// The operation ended.
    pub fn returns(&self, call: Call, outcome: Outcome, at: u64) {
        let mut records = self.records();
        let returned = records.next();
        let operation = &mut records.keys[call.key].1[call.operation];
        let fits = fits(operation.action, outcome);
        assert!(fits, "{outcome:?} is no way for {:?} to end", operation.action);
        operation.outcome = outcome;
        operation.returned = returned;
        operation.returned_at = at;
    }

    /// The keys with their operations, as far as they were recorded. Keys are in the order of their first use.
    pub fn keys(&self) -> Vec<(String, Vec<Operation>)> {
        self.records().keys.clone()
    }

    /// How many operations ended how.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for operation in self.records().keys.iter().flat_map(|(_, operations)| operations) {
            match operation.outcome {
                Outcome::Ok(_) => counts.ok += 1,
                Outcome::Failed => counts.failed += 1,
                Outcome::Unknown => counts.unknown += 1,
            }
        }
        counts
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // A recorder that panicked left nothing half done.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    fn next(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    fn key(&mut self, name: &str) -> usize {
        if let Some(key) = self.names.get(name) {
            return *key;
        }
        let key = self.keys.len();
        self.names.insert(name.to_owned(), key);
        self.keys.push((name.to_owned(), Vec::new()));
        key
    }
}

/// Whether an action can end like this at all.
fn fits(action: Action, outcome: Outcome) -> bool {
    let Outcome::Ok(answer) = outcome else { return true };
    match answer {
        Answer::Found(..) | Answer::Missing => action == Action::Get,
        Answer::Stored(_) => matches!(action, Action::Put { .. }),
        Answer::Deleted(_) => matches!(action, Action::Delete { .. }),
        Answer::Mismatch => action.if_version().is_some(),
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get => write!(f, "get")?,
            Self::Put { value, .. } => write!(f, "put {value}")?,
            Self::Delete { .. } => write!(f, "delete")?,
        }
        match self.if_version() {
            Some(version) => write!(f, " if version {version}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(Answer::Found(value, version)) => write!(f, "{value}, version {version}"),
            Self::Ok(Answer::Missing) => write!(f, "missing"),
            Self::Ok(Answer::Stored(version)) => write!(f, "version {version}"),
            Self::Ok(Answer::Deleted(deleted)) => write!(f, "deleted: {deleted}"),
            Self::Ok(Answer::Mismatch) => write!(f, "version mismatch"),
            Self::Failed => write!(f, "failed"),
            Self::Unknown => write!(f, "unknown"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}: {} -> {}", self.client, self.action, self.outcome)?;
        write!(f, "   [#{} at {}, ", self.called, self.called_at)?;
        match self.returned {
            u64::MAX => write!(f, "never returned]"),
            returned => write!(f, "#{returned} at {}]", self.returned_at),
        }
    }
}
