//! Whether the disk has room for more: asked before a command is proposed, because what is committed cannot be refused.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{Error, Reason, Result};
use crate::util::fs::FileSystem;

/// How long an answer of the file system holds.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The room on the disk of a node's data.
pub struct Room {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    free_min: u64,
    looked: Mutex<Option<(Instant, u64)>>,
}

impl Room {
    /// The room in `directory`, of which `free_min` bytes stay free for what must go on: the log, compaction, deletes.
    pub fn new(fs: Arc<dyn FileSystem>, directory: PathBuf, free_min: u64) -> Self {
        Self { fs, directory, free_min, looked: Mutex::new(None) }
    }

    /// Whether commands that grow may be proposed.
    ///
    /// # Errors
    ///
    /// DISK_FULL. When the file system does not answer, writing will tell.
    pub(super) fn check(&self) -> Result<()> {
        let mut looked = self.looked.lock();
        let free = match *looked {
            Some((at, free)) if at.elapsed() < LOOK_AGAIN => free,
            _ => {
                let Ok(space) = self.fs.space(&self.directory) else { return Ok(()) };
                *looked = Some((Instant::now(), space.available));
                space.available
            }
        };
        if free >= self.free_min {
            return Ok(());
        }
        let message = format!(
            "{free} bytes are free on the disk of the shard's leader, {} have to stay free (kvstore.storage.disk-free-min); deletes are still taken",
            self.free_min
        );
        Err(Error::new(Reason::DiskFull, message))
    }
}
