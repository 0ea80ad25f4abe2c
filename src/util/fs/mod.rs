//! The file system as a seam: everything of this project that goes to disk goes through [`FileSystem`], so that a test
//! can lose power at any step, fill the disk or break a write.
//!
//! Two implementations: [`RealFileSystem`] (the machine's) and [`sim::SimFileSystem`] (in memory, by seed, with
//! crashes and faults). Callers: `wal`, `storage`, and whoever keeps files beside them.
//!
//! # What is durable when
//!
//! The contract is what POSIX and the weaker file systems promise, not what a good ext4 happens to do:
//!
//! * **Content.** What was written into a file survives a power cut only after a later [`File::sync_data`] on it has
//!   returned `Ok`. Without one, each sector written since is kept, lost or torn, each on its own, in any order. A sector
//!   that was synced and then overwritten may come back old, new or torn.
//! * **Size.** A size that changed ([`File::write_at`] past the end, [`File::allocate`], [`File::truncate`]) is durable
//!   with the same `sync_data`. Bytes between the written parts read as zeros.
//! * **Names.** A file or directory that was created, renamed, linked or removed has its new name durably only after
//!   [`FileSystem::sync_dir`] on the directory that holds the name. `sync_data` on the file does not make its name
//!   durable. Without `sync_dir` each change of a directory may be kept or lost.
//! * **Rename** replaces its target atomically: after a crash the target is the old file or the new one, never missing
//!   and never a mixture. It says nothing about the content: sync the file *before* the rename.
//! * **A failed sync is final.** After `sync_data` or `sync_dir` failed, the state of everything unsynced is unknown and
//!   a second call that returns `Ok` proves nothing (Rebello et al., ATC '20). Nothing here repeats a failed sync;
//!   callers must not either. But a sync that found no handle ([`is_out_of_handles`]) has not been tried.
//!
//! # Errors
//!
//! Plain `io::Error`; the caller knows what it was doing and adds the path. Interrupted and short calls are continued
//! inside. [`is_disk_full`] tells "no space" (also a quota) from the rest, [`is_out_of_handles`] that the process or the
//! system has as many files open as it may: then the call has not been tried, whichever it was.
//!
//! # Concurrency
//!
//! Any thread may call anything. Positions are arguments: there is no cursor. Overlapping writes at one time leave either
//! content. Calls block.

mod real;
mod sealed;
pub mod sim;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

pub use real::RealFileSystem;
pub use sealed::{read_sealed, write_sealed};

/// Opens, names and removes files. See the [module](self) for what survives a crash.
///
/// A call that fails with anything but an error of a sync has changed nothing a caller can see, except that
/// [`create_dir_all`](Self::create_dir_all) may have made some of the directories.
pub trait FileSystem: fmt::Debug + Send + Sync + 'static {
    /// Creates an empty file for reading and writing. `AlreadyExists` when the name is taken.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading only; its writing methods fail.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading and writing.
    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Removes the name of a file. Open handles stay usable; the space is freed with the last name and handle.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Renames atomically, on one file system: a file, which replaces the file `to` if that is there, or a directory with
    /// all that is in it, which replaces the empty directory `to` if that is there. Between two directories, the
    /// `sync_dir` of either makes it durable in both.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives the file `from` the further name `to`. `AlreadyExists` when that is taken.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// The names in a directory, sorted by their bytes, files and directories alike. A name that is not UTF-8 comes with
    /// replacement characters, so it matches no name this project gives.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Whether the name is there (file or directory).
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Creates a directory and all that lead to it. `Ok` when it is there already. The names become durable as all names
    /// do: by [`sync_dir`](Self::sync_dir) of each parent.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes all names in the directory durable as they are now.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Capacity and room of the file system that holds `dir`.
    fn space(&self, dir: &Path) -> io::Result<Space>;

    /// Takes the directory for this process until the guard is dropped or the process ends. `WouldBlock` when another
    /// process, or another guard of this one, has it. Leaves a file named [`LOCK_FILE`] in the directory.
    fn lock(&self, dir: &Path) -> io::Result<DirLock>;

    /// As [`lock`](Self::lock), against those who lock, for somebody who only reads and leaves nothing behind. `None` when
    /// there is no [`LOCK_FILE`]: then nobody has the directory.
    fn lock_to_read(&self, dir: &Path) -> io::Result<Option<DirLock>>;
}

/// An open file. See the [module](self) for what survives a crash.
pub trait File: fmt::Debug + Send + Sync {
    /// Reads into `buffer` from `offset` on. Fewer bytes than asked for mean that the file ends there.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`; the file grows when they reach past its end. On an error any part of them may
    /// have been written, and the size may have changed accordingly.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes content and size durable. A failure is final, see the [module](self).
    fn sync_data(&self) -> io::Result<()>;

    /// Grows the file to at least `len` bytes and reserves the space, so that later writes below `len` neither change the
    /// size nor run out of space. New bytes read as zeros, what was there stays. On an error the size may lie between.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Sets the size to `len`: cuts, or grows with zeros without reserving space.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// The size in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on, or fails with `UnexpectedEof`; the buffer's content is unspecified then.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.read_at(buffer, offset)?;
        if read == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The file that [`FileSystem::lock`] leaves in a directory. It is empty and stays there.
pub const LOCK_FILE: &str = "LOCK";

/// Capacity of a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// What an ordinary user may still write.
    pub available: u64,
}

/// Holds a directory for this process; let go on drop.
pub struct DirLock {
    _guard: Box<dyn Send + Sync>,
}

impl DirLock {
    /// A lock that lasts as long as `guard`.
    fn new(guard: impl Send + Sync + 'static) -> Self {
        Self { _guard: Box::new(guard) }
    }
}

impl fmt::Debug for DirLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirLock")
    }
}

/// Whether the call failed because the disk, or the user's share of it, is full.
pub fn is_disk_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Whether the call was not tried, because it had to open something and as many files are open as may be, by this process
/// or in all.
pub fn is_out_of_handles(error: &io::Error) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Reads a whole file of at most `size_max` bytes; a larger one is `InvalidData`, before anything is allocated for it.
pub fn read_file(fs: &dyn FileSystem, path: &Path, size_max: u64) -> io::Result<Vec<u8>> {
    let file = fs.open(path)?;
    let size = file.size()?;
    let too_large = || {
        let message = format!("the file has {size} bytes, expected at most {size_max}");
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    if size > size_max {
        return Err(too_large());
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| too_large())?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Makes `dir/name` hold `bytes`, atomically and durably: after a crash at any point it is as before or as asked for. Goes
/// by way of `dir/name.tmp`, which a crash may leave behind and the next call replaces.
///
/// After an error that [`is_disk_full`] or [`is_out_of_handles`] tells, it is as before.
pub fn replace_file(fs: &dyn FileSystem, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    if fs.exists(&temporary)? {
        fs.remove(&temporary)?;
    }
    let file = fs.create(&temporary)?;
    file.write_at(bytes, 0)?;
    // Before the rename: a name must never become durable ahead of its content.
    file.sync_data()?;
    // Its handle is free for the sync of the directory.
    drop(file);
    fs.rename(&temporary, &dir.join(name))?;
    // Whatever fails now, nobody knows what a crash would leave: an error of no kind that can be waited out.
    fs.sync_dir(dir).map_err(io::Error::other)
}
