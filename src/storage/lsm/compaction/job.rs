//! Merges tables into new ones.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::picker::Input;
use super::rules::Readers;
use crate::storage::Result;
use crate::storage::lsm::files::TableDirectory;
use crate::storage::lsm::version::{Version, VersionEdit};

/// A merge to be done.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// Where the tables are.
    pub(crate) directory: &'a Arc<TableDirectory>,
    /// The version it was picked from.
    pub(crate) version: &'a Version,
    /// From the newest data to the oldest.
    pub(crate) inputs: &'a [Input],
    /// Level of the new tables.
    pub(crate) to: usize,
    /// Who reads.
    pub(crate) readers: &'a Readers,
    /// Size aimed at for a table.
    pub(crate) table_bytes: u64,
    /// No table is larger, unless one key needs it.
    pub(crate) table_bytes_max: u64,
    /// Set: give up soon.
    pub(crate) abort: &'a AtomicBool,
}

impl Job<'_> {
    /// Writes and syncs the new tables and returns the edit that puts them in the place of the old ones; `None` when
    /// it was told to give up. What it wrote is removed then, and after an error.
    pub(crate) fn run(&self) -> Result<Option<VersionEdit>> {
        unimplemented!()
    }
}
