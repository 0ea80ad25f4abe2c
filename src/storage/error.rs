//! What can go wrong in an engine, by what the caller has to do about it. The cause is kept as source.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of engine calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed engine call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Bytes on disk are not what was written. The data is damaged; another copy must answer. Never retried, nothing is
    /// repaired silently.
    #[error("corruption in {} at offset {offset}: {detail}", file.display())]
    Corruption {
        /// The damaged file.
        file: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        detail: String,
    },
    /// The operating system refused something. For a write: the engine is poisoned now, unless it says that it is writable;
    /// then nothing was changed.
    #[error("{operation} of {} failed: {source}", path.display())]
    Io {
        /// What was tried: `open`, `write`, `sync`, ...
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// An earlier write or sync failed; writes are refused until the environment is opened again.
    #[error("writes are refused after an earlier failure: {cause}")]
    Poisoned {
        /// What failed.
        cause: String,
    },
    /// No space left. Nothing was written; deleting or adding space helps.
    #[error("no space left for {}", path.display())]
    DiskFull {
        /// What could not grow.
        path: PathBuf,
    },
    /// As many files are open as may be, by this process or in all. Nothing was changed; closing some, or a higher limit,
    /// helps.
    #[error(
        "no file handle is left for {} ({source}): this process may open only so many files (ulimit -n), and up to kvstore.storage.open-files-max of them are tables",
        path.display()
    )]
    NoHandles {
        /// What could not be opened or made.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// The caller broke the contract. Nothing was changed.
    #[error("{0}")]
    Invalid(String),
    /// Another process has the data directory.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

impl Error {
    /// Wraps what the operating system said about `operation` on `path`.
    pub fn io(operation: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { operation, path: path.as_ref().to_owned(), source: Arc::new(source) }
    }

    /// Damage found in `file` at `offset`.
    pub fn corruption(file: impl AsRef<Path>, offset: u64, detail: impl Into<String>) -> Self {
        Self::Corruption { file: file.as_ref().to_owned(), offset, detail: detail.into() }
    }
}
