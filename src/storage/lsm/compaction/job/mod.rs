//! A merge: tables in, new tables out, and the edit that puts these in the place of those. Nothing is visible before
//! that edit is committed, so a merge may fail or be given up at any point: what it wrote is removed, or is an orphan.
//!
//! Invariants: the entries of one user key are in one output table; an output holds range deletions only between the cut
//! before it and the cut behind it, so outputs do not overlap.

mod inputs;
mod outputs;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

use self::inputs::{Deeper, Inputs};
use self::outputs::Outputs;
use super::picker::Input;
use super::rules::{KeyRules, Readers};
use crate::storage::lsm::files::TableDirectory;
use crate::storage::lsm::key::KeyHash;
use crate::storage::lsm::options::TableOptions;
use crate::storage::lsm::table::{Fragment, RangeDeletions};
use crate::storage::lsm::version::{Version, VersionEdit};
use crate::storage::{KeyRange, Result};

/// A merge to be done.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// Where the tables are.
    pub(crate) directory: &'a TableDirectory,
    /// The version it was picked from.
    pub(crate) version: &'a Version,
    /// From the newest data to the oldest.
    pub(crate) inputs: &'a [Input],
    /// Level of the new tables.
    pub(crate) to: usize,
    /// Who reads. Taken after the version: a view that began before must be among them.
    pub(crate) readers: &'a Readers,
    /// Layout of the new tables.
    pub(crate) layout: TableOptions,
    /// Size aimed at for a table.
    pub(crate) table_bytes: u64,
    /// No table is larger, unless one key alone is.
    pub(crate) table_bytes_max: u64,
    /// Set: give up soon.
    pub(crate) abort: &'a AtomicBool,
}

impl Job<'_> {
    /// Writes and syncs the new tables and returns the edit that puts them in the place of the old ones; `None` when
    /// it was told to give up. What it wrote is removed then, and after an error.
    pub(crate) fn run(&self) -> Result<Option<VersionEdit>> {
        let flushed = self.version.flushed().clock;
        assert!(self.readers.present().clock <= flushed, "a later clock may be lost in a crash");
        let mut outputs = Outputs::new(self);
        match self.merge(&mut outputs) {
            Ok(true) => Ok(Some(self.edit(outputs))),
            Ok(false) => {
                outputs.remove();
                Ok(None)
            }
            Err(error) => {
                outputs.remove();
                Err(error)
            }
        }
    }

    fn edit(&self, outputs: Outputs<'_>) -> VersionEdit {
        let numbers = |input: &Input| {
            let level = input.level;
            input.tables.iter().map(move |table| (level, table.number())).collect::<Vec<_>>()
        };
        VersionEdit {
            added: outputs.into_tables(),
            removed: self.inputs.iter().flat_map(numbers).collect(),
            flushed: None,
        }
    }

    /// Whether it came to the end.
    fn merge(&self, outputs: &mut Outputs<'_>) -> Result<bool> {
        let deletions = self.range_deletions()?;
        outputs.set_range_deletions(self.kept_deletions(&deletions));
        let mut inputs = Inputs::open(self.inputs)?;
        let mut deeper = Deeper::new(self.version, self.to);
        let mut deletions = deletions.fragments().iter().peekable();
        let mut key = Vec::new();
        while let Some(first) = inputs.entry() {
            if self.abort.load(Ordering::Relaxed) {
                return Ok(false);
            }
            key.clear();
            key.extend_from_slice(first.key);
            outputs.begin_key(&first)?;
            while deletions.next_if(|fragment| *fragment.end <= *key).is_some() {}
            let covering = match deletions.peek() {
                Some(fragment) if *fragment.start <= *key => &fragment.seqnos[..],
                _ => &[],
            };
            let mut rules = KeyRules::new(self.readers, covering, !deeper.may_hold(&key));
            let hash = KeyHash::of(&key);
            while let Some(entry) = inputs.entry().filter(|entry| entry.key == key) {
                if let Some(kept) = rules.next(&entry) {
                    outputs.add(&kept, hash)?;
                }
                inputs.next()?;
            }
        }
        outputs.cut(None)?;
        Ok(true)
    }

    /// Those of all inputs.
    fn range_deletions(&self) -> Result<RangeDeletions> {
        let mut all = Vec::new();
        for table in self.inputs.iter().flat_map(|input| &input.tables) {
            if table.properties().range_deletions == 0 {
                continue;
            }
            for Fragment { start, end, seqnos } in table.table()?.range_deletions().fragments() {
                all.extend(seqnos.iter().map(|&seqno| (start.to_vec(), end.to_vec(), seqno)));
            }
        }
        Ok(RangeDeletions::fragment(&all))
    }

    /// Those that stay.
    fn kept_deletions(&self, deletions: &RangeDeletions) -> Vec<Fragment> {
        let deeper = &self.version.levels()[self.to + 1..];
        let kept = |fragment: &Fragment| {
            let Fragment { start, end, seqnos } = fragment.clone();
            let span = KeyRange::new(&start, Some(&end)).into();
            let is_last = deeper.iter().all(|level| level.range(span).is_empty());
            let seqnos = self.readers.keep_deletions(&seqnos, is_last);
            (!seqnos.is_empty()).then(|| Fragment { start, end, seqnos: seqnos.into() })
        };
        deletions.fragments().iter().filter_map(kept).collect()
    }
}
