//! What can go wrong in the log, by what the caller has to do about it. The cause is kept as source.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::util::fs::is_out_of_handles;

/// The result of calls of the log.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Bytes on disk are not what was written. Nothing was changed on disk and nothing is repaired silently.
    #[error("corruption in {} at offset {offset}: {detail}", file.display())]
    Corruption {
        /// The damaged file.
        file: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        detail: String,
    },
    /// The operating system refused to open, create, read, list or remove something. The log goes on.
    #[error("{operation} of {} failed: {source}", path.display())]
    Io {
        /// What was tried: `open`, `read`, ...
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// A write or sync failed, now or earlier: what of the unsynced records is on the disk is unknown. Nothing is
    /// appended or acknowledged until the log is opened again.
    #[error("the log takes no more writes since {operation} of {} failed: {source}", path.display())]
    Poisoned {
        /// What failed first.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// No room for the next segment. The record was not appended, everything before it is as it was; works again when
    /// there is room.
    #[error("no space left for {}", path.display())]
    DiskFull {
        /// What could not be made.
        path: PathBuf,
    },
    /// The caller broke the contract. Nothing was changed.
    #[error("{0}")]
    Invalid(String),
    /// Another process, or another log of this one, has the directory.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

impl Error {
    /// Wraps what the operating system said about `operation` on `path`.
    pub(super) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source: Arc::new(source) }
    }

    /// Damage found in `file` at `offset`.
    pub(super) fn corruption(file: &Path, offset: u32, detail: impl Into<String>) -> Self {
        Self::Corruption { file: file.to_owned(), offset: u64::from(offset), detail: detail.into() }
    }

    /// Whether what failed has changed nothing that the log relies on, and may be done again: a file could not be made, or
    /// no handle was left for whatever it was. To make a segment again replaces what there is of it.
    pub(super) fn changed_nothing(&self) -> bool {
        match self {
            Self::Io { operation, source, .. } => {
                *operation == "create" || is_out_of_handles(source)
            }
            Self::DiskFull { .. } | Self::Invalid(_) => true,
            _ => false,
        }
    }

    /// The error that ends all writing, made from the one that caused it.
    pub(super) fn into_poison(self) -> Self {
        match self {
            Self::Io { operation, path, source } => Self::Poisoned { operation, path, source },
            other => other,
        }
    }
}
