//! Compaction: rewriting tables so that reads ask few of them, and so that what nobody can see gives its space back.
//!
//! | part | what |
//! |---|---|
//! | [`picker`] | which tables next: pure |
//! | [`rules`] | what of a key may be dropped: pure |
//! | [`job`] | merges tables into new ones |
//! | [`pacer`] | slows writes down before the tree falls behind |
//!
//! The engine asks the picker, runs what it chose, commits the edit to the manifest and switches readers to the new
//! version. Nothing here does that by itself.

pub(crate) mod job;
pub(crate) mod pacer;
pub(crate) mod picker;
pub(crate) mod rules;

use super::table::Fragment;
use super::version::Version;
use crate::storage::Result;

/// The range deletions of a tree, as runs of fragments in key order: one for each table of level 0, one for each other
/// level. Opens the tables that have some.
pub(crate) fn range_deletions(version: &Version) -> Result<Vec<Vec<Fragment>>> {
    let mut runs = Vec::new();
    for (number, level) in version.levels().iter().enumerate() {
        let mut run = Vec::new();
        for table in level.tables().iter().filter(|table| table.properties().range_deletions > 0) {
            run.extend_from_slice(table.table()?.range_deletions().fragments());
            if number == 0 {
                runs.push(std::mem::take(&mut run));
            }
        }
        runs.push(run);
    }
    runs.retain(|run| !run.is_empty());
    Ok(runs)
}
