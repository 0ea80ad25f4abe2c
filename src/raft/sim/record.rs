//! What a run has seen: the history of the registers, what was promised beside it, the first violation, and a hash of all that happened.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher as _};

use linz::History;
use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

use crate::types::Version;

/// Most operations of a run.
const OPERATIONS_MAX: usize = 100_000;

/// See the [module](self).
pub(super) struct Record {
    pub(super) history: History,
    inner: Mutex<Inner>,
}

struct Inner {
    next_value: u64,
    /// What was ever proposed, by key.
    proposed: BTreeMap<String, BTreeSet<u64>>,
    /// Keys that are written once, and were acknowledged.
    promised: BTreeMap<String, (u64, Version)>,
    violation: Option<String>,
    trace: Xxh3,
    counts: Counts,
}

/// What clients met.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Operations that were answered.
    pub(super) answered: u64,
    /// Certainly not applied.
    pub(super) failed: u64,
    /// Nobody knows.
    pub(super) unknown: u64,
    /// Writes whose first attempt was in doubt and that a repeat settled.
    pub(super) settled: u64,
    /// Writes that were answered and repeated all the same.
    pub(super) repeated: u64,
    /// Keys with a ttl that were seen to go.
    pub(super) expired: u64,
}

impl Record {
    pub(super) fn new() -> Self {
        let inner = Inner {
            next_value: 1,
            proposed: BTreeMap::new(),
            promised: BTreeMap::new(),
            violation: None,
            trace: Xxh3::new(),
            counts: Counts::default(),
        };
        Self { history: History::new(OPERATIONS_MAX), inner: Mutex::new(inner) }
    }

    /// A value that was never proposed, and is now.
    pub(super) fn propose(&self, keys: &[&str]) -> u64 {
        let mut inner = self.inner.lock();
        let value = inner.next_value;
        inner.next_value += 1;
        for key in keys {
            inner.proposed.entry((*key).to_owned()).or_default().insert(value);
        }
        value
    }

    /// Whether somebody wanted `value` to be there.
    pub(super) fn was_proposed(&self, key: &str, value: u64) -> bool {
        self.inner.lock().proposed.get(key).is_some_and(|values| values.contains(&value))
    }

    /// `key`, which is written once, has this.
    pub(super) fn promise(&self, key: String, value: u64, version: Version) {
        self.inner.lock().promised.insert(key, (value, version));
    }

    pub(super) fn promised(&self) -> BTreeMap<String, (u64, Version)> {
        self.inner.lock().promised.clone()
    }

    /// Something happened: the same in every run of a seed.
    pub(super) fn trace(&self, event: impl Hash) {
        struct Feed<'a>(&'a mut Xxh3);
        impl std::hash::Hasher for Feed<'_> {
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
            fn finish(&self) -> u64 {
                self.0.digest()
            }
        }
        event.hash(&mut Feed(&mut self.inner.lock().trace));
    }

    pub(super) fn trace_hash(&self) -> u64 {
        self.inner.lock().trace.finish()
    }

    /// Something that must not be. The first counts.
    pub(super) fn violate(&self, what: String) {
        self.inner.lock().violation.get_or_insert(what);
    }

    pub(super) fn violation(&self) -> Option<String> {
        self.inner.lock().violation.clone()
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Counts)) {
        add(&mut self.inner.lock().counts);
    }

    pub(super) fn counts(&self) -> Counts {
        self.inner.lock().counts
    }
}
