//! Small helpers for the directories in which snapshots lie: flat, and of no worth after a restart.

use std::io;
use std::path::Path;

use crate::util::fs::FileSystem;

/// Removes `directory` with the files in it; no error when there is none.
pub(super) fn remove_files(fs: &dyn FileSystem, directory: &Path) -> io::Result<()> {
    let names = match fs.list(directory) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in names {
        fs.remove(&directory.join(name))?;
    }
    fs.remove_dir(directory)
}
