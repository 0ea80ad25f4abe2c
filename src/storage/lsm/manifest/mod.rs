//! The manifest.
use std::sync::Arc;

use super::files::TableDirectory;
use super::version::{Version, VersionEdit};
use crate::storage::Result;

/// The manifest of an open engine.
#[derive(Debug)]
pub(crate) struct Manifest {
    directory: Arc<TableDirectory>,
    version: Arc<Version>,
}

impl Manifest {
    /// Writes the first manifest of an engine with this version (empty for a new one; a checkpoint names tables that
    /// are in the directory already).
    pub(crate) fn create(_directory: &Arc<TableDirectory>, _version: Arc<Version>) -> Result<Self> {
        unimplemented!()
    }

    /// Opens the manifest in the directory; files that it does not name are removed.
    pub(crate) fn open(_directory: &Arc<TableDirectory>) -> Result<Self> {
        unimplemented!()
    }

    /// The version as of the last commit.
    pub(crate) const fn version(&self) -> &Arc<Version> {
        &self.version
    }

    /// Makes the edit durable (tables it adds must be synced; their names are made durable here) and returns the next
    /// version. [`Error::DiskFull`](crate::storage::Error): nothing happened, may be tried again. Any other error
    /// poisons the manifest.
    pub(crate) fn commit(&mut self, _edit: &VersionEdit) -> Result<Arc<Version>> {
        unimplemented!()
    }
}
