//! What a batch changes in the tree of an engine: each touched entry with its row before and after.
//!
//! Invariant: computed from the tree under the engine's writer lock, so that nothing moves in between; changes nothing itself.

use std::collections::BTreeMap;

use sled::IVec;

use super::rows::{self, State};
use super::store::Store;
use crate::storage::{KeyRange, Operation, Result, Seqno, WriteBatch};
use crate::util::time::Timestamp;

/// Hidden entries that one batch reclaims at most, so that a batch that moves the clock far stays short.
pub(super) const RECLAIM_PER_BATCH_MAX: usize = 1_000;

struct Change {
    before: Option<IVec>,
    after: Option<IVec>,
}

/// The changes of one batch.
pub(super) struct Changes<'a> {
    store: &'a Store,
    tree: &'a sled::Tree,
    state: State,
    entries: BTreeMap<IVec, Change>,
    reclaimed: usize,
}

impl<'a> Changes<'a> {
    /// The changes that `batch` makes to `tree`, whose state is `state`, hidden entries that it reclaims included.
    pub(super) fn of(
        store: &'a Store,
        tree: &'a sled::Tree,
        state: State,
        batch: &WriteBatch,
    ) -> Result<Self> {
        let clock = state.clock.max(batch.clock());
        let state = State { seqno: Seqno(state.seqno.0 + 1), clock, ..state };
        let mut changes = Self { store, tree, state, entries: BTreeMap::new(), reclaimed: 0 };
        for operation in batch.operations() {
            match operation {
                Operation::Put { key, value, expires_at } => {
                    let hidden = expires_at.is_some_and(|expires_at| expires_at <= clock);
                    let row = (!hidden).then(|| rows::encode_entry(value, expires_at));
                    changes.set(rows::entry_key(key), row)?;
                }
                Operation::Delete { key } => changes.set(rows::entry_key(key), None)?,
                Operation::DeleteRange { start, end } => changes.delete_range(start, end)?,
            }
        }
        changes.reclaim()?;
        changes.count()?;
        Ok(changes)
    }

    /// The state of the engine with the batch.
    pub(super) const fn state(&self) -> State {
        self.state
    }

    /// Hidden entries that it reclaims.
    pub(super) const fn reclaimed(&self) -> usize {
        self.reclaimed
    }

    /// The rows that readers of earlier moments must go on seeing.
    pub(super) fn images(&self) -> impl Iterator<Item = (IVec, Option<IVec>)> {
        self.entries
            .iter()
            .filter(|(_, change)| change.before != change.after)
            .map(|(key, change)| (key.clone(), change.before.clone()))
    }

    /// The batch of rows, the state row included.
    pub(super) fn rows(&self) -> Result<sled::Batch> {
        let mut batch = sled::Batch::default();
        for (key, Change { before, after }) in &self.entries {
            if before == after {
                continue;
            }
            let expiry_before = expiry(self.store, key, before.as_ref())?;
            let expiry_after = expiry(self.store, key, after.as_ref())?;
            if expiry_before != expiry_after {
                if let Some(expires_at) = expiry_before {
                    batch.remove(rows::expiry_key(expires_at, key));
                }
                if let Some(expires_at) = expiry_after {
                    batch.insert(rows::expiry_key(expires_at, key), &[]);
                }
            }
            match after {
                Some(row) => batch.insert(key, row),
                None => batch.remove(key),
            }
        }
        batch.insert(rows::STATE_KEY, self.state.encode());
        Ok(batch)
    }

    fn set(&mut self, key: IVec, after: Option<IVec>) -> Result<()> {
        if let Some(change) = self.entries.get_mut(&key) {
            change.after = after;
            return Ok(());
        }
        let before = self.store.call("read", || self.tree.get(&key))?;
        self.entries.insert(key, Change { before, after });
        Ok(())
    }

    fn delete_range(&mut self, start: &[u8], end: &[u8]) -> Result<()> {
        if KeyRange::new(start, Some(end)).is_empty() {
            return Ok(());
        }
        let (start, end) = (rows::entry_key(start), rows::entry_key(end));
        // Entries that only this batch knows first, then those of the tree.
        for (_, change) in self.entries.range_mut(start.clone()..end.clone()) {
            change.after = None;
        }
        let mut rows = self.tree.range(start..end);
        while let Some((key, before)) = self.store.next(&mut rows)? {
            self.entries.entry(key).or_insert(Change { before: Some(before), after: None });
        }
        Ok(())
    }

    /// Adds entries that the clock hides, oldest first.
    fn reclaim(&mut self) -> Result<()> {
        let after_clock = self.state.clock.as_millis().saturating_add(1);
        let hidden = rows::expiry_bound(Timestamp::BEGINNING)
            ..rows::expiry_bound(Timestamp::from_millis(after_clock));
        let mut expiries = self.tree.range(hidden).take(RECLAIM_PER_BATCH_MAX);
        while let Some((row_key, _)) = self.store.next(&mut expiries)? {
            let Some((_, key)) = rows::decode_expiry_key(&row_key) else {
                return Err(self.store.damaged("malformed expiry row"));
            };
            self.reclaimed += 1;
            if !self.entries.contains_key(&key) {
                self.set(key, None)?;
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<()> {
        for (key, change) in &self.entries {
            if let Some(row) = &change.before {
                self.state.discount(key, entry_value(self.store, key, row)?);
            }
            if let Some(row) = &change.after {
                self.state.count(key, entry_value(self.store, key, row)?);
            }
        }
        Ok(())
    }
}

fn entry_value<'r>(store: &Store, key: &'r IVec, row: &'r IVec) -> Result<&'r [u8]> {
    rows::decode_entry(key, row)
        .map(|entry| entry.value)
        .ok_or_else(|| store.damaged("malformed entry row"))
}

fn expiry(store: &Store, key: &IVec, row: Option<&IVec>) -> Result<Option<Timestamp>> {
    let Some(row) = row else { return Ok(None) };
    rows::decode_entry(key, row)
        .map(|entry| entry.expires_at)
        .ok_or_else(|| store.damaged("malformed entry row"))
}
