//! The compactions that run, as the picker has to know them: what they take, and where what they take will be put.

use std::collections::HashSet;

use super::Choice;
use crate::storage::lsm::files::{FileNumber, TableFile};
use crate::storage::lsm::level::Span;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Running {
    jobs: Vec<Job>,
}

#[derive(Debug)]
struct Job {
    choice: Choice,
    /// All of its tables, to be found quickly.
    tables: HashSet<FileNumber>,
}

impl Running {
    /// From now on `choice` is being carried out. It was chosen beside all others that are.
    pub(crate) fn begin(&mut self, choice: Choice) {
        assert!(self.allows(&choice), "a compaction is in the way of another one");
        let tables = choice.tables().map(|table| table.number()).collect();
        self.jobs.push(Job { choice, tables });
    }

    /// What came of `choice` is in the tree, or nothing has come of it.
    pub(crate) fn end(&mut self, choice: &Choice) {
        // No two take the same table.
        let is_it = |job: &Job| choice.tables().any(|table| job.tables.contains(&table.number()));
        self.jobs.retain(|job| !is_it(job));
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// How many tables they take.
    pub(crate) fn tables(&self) -> usize {
        self.jobs.iter().map(|job| job.tables.len()).sum()
    }

    /// Whether one of them takes the table.
    pub(crate) fn takes(&self, table: &TableFile) -> bool {
        self.jobs.iter().any(|job| job.tables.contains(&table.number()))
    }

    /// Whether one of them may put keys of `span` into `level`.
    pub(crate) fn puts(&self, level: usize, span: Span<'_>) -> bool {
        let into = |job: &&Job| job.choice.to() == Some(level);
        let overlaps = |job: &Job| job.choice.put_spans().iter().any(|put| put.overlaps(span));
        self.jobs.iter().filter(into).any(overlaps)
    }

    /// Whether `choice` may be carried out beside them.
    pub(crate) fn allows(&self, choice: &Choice) -> bool {
        let puts = |to| choice.put_spans().into_iter().any(|span| self.puts(to, span));
        !choice.tables().any(|table| self.takes(table)) && !choice.to().is_some_and(puts)
    }
}
