//! The machine's file system behind the [`FileSystem`] trait: thin calls to the operating system.

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::{DirLock, File, FileSystem, LOCK_FILE, Space};

/// Bytes of zeros written at a time where the file system cannot reserve space.
const ZEROS_BYTES: usize = 1 << 20;

/// The machine's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFileSystem;

impl FileSystem for RealFileSystem {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(RealFile { file }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile { file: fs::File::open(path)? }))
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(RealFile { file }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = statvfs(dir)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        let path = dir.join(LOCK_FILE);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(DirLock::new(Held(file))),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn lock_to_read(&self, dir: &Path) -> io::Result<Option<DirLock>> {
        let file = match OpenOptions::new().read(true).open(dir.join(LOCK_FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(DirLock::new(Held(file)))),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// A lock. Let go by name: closing the file is not enough while a child, which another thread is just starting, still has
/// a copy of it.
struct Held(fs::File);

impl Drop for Held {
    fn drop(&mut self) {
        // Should it fail, closing lets go as well, if later.
        let _ = self.0.unlock();
    }
}

/// A file of the machine.
#[derive(Debug)]
struct RealFile {
    file: fs::File,
}

impl RealFile {
    /// What `fallocate` does, for file systems that do not have it.
    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        let zeros = vec![0; ZEROS_BYTES];
        let mut offset = from;
        while offset < to {
            let count = usize::try_from(to - offset).map_or(ZEROS_BYTES, |n| n.min(ZEROS_BYTES));
            self.file.write_all_at(&zeros[..count], offset)?;
            offset += count as u64;
        }
        Ok(())
    }
}

impl File for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < buffer.len() {
            match self.file.read_at(&mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let size = self.size()?;
        if len <= size {
            return Ok(());
        }
        loop {
            match fallocate(&self.file, FallocateFlags::empty(), size, len - size) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return self.write_zeros(size, len),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::fs::{read_file, replace_file};

    #[test]
    fn an_allocated_file_keeps_its_content_and_reads_zeros_behind_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = RealFileSystem.create(&dir.path().join("a")).expect("created");
        file.write_at(b"head", 0).expect("written");
        file.allocate(10_000).expect("allocated");
        assert_eq!(file.size().expect("size"), 10_000);
        let mut bytes = [1; 8];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert_eq!(&bytes, b"head\0\0\0\0");
        file.allocate(100).expect("a smaller size changes nothing");
        assert_eq!(file.size().expect("size"), 10_000);
    }

    #[test]
    fn zeros_are_written_where_space_cannot_be_reserved() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("a");
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(path);
        let file = RealFile { file: file.expect("created") };
        let len = ZEROS_BYTES as u64 * 2 + 5;
        file.write_zeros(0, len).expect("written");
        assert_eq!(file.size().expect("size"), len);
    }

    #[test]
    fn a_read_past_the_end_says_how_much_there_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = RealFileSystem.create(&dir.path().join("a")).expect("created");
        file.write_at(b"abc", 0).expect("written");
        let mut bytes = [0; 8];
        assert_eq!(file.read_at(&mut bytes, 1).expect("read"), 2);
        let error = file.read_exact_at(&mut bytes, 1).expect_err("too short");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_locked_directory_is_refused_until_the_guard_is_dropped() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let guard = RealFileSystem.lock(dir.path()).expect("locked");
        let error = RealFileSystem.lock(dir.path()).expect_err("locked already");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let error = RealFileSystem.lock_to_read(dir.path()).expect_err("nor may anybody look");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(guard);
        let readers = [(); 2].map(|()| RealFileSystem.lock_to_read(dir.path()).expect("free"));
        assert!(readers.iter().all(Option::is_some));
        RealFileSystem.lock(dir.path()).expect_err("somebody reads");
        drop(readers);
        RealFileSystem.lock(dir.path()).expect("free again");
        let never = tempfile::tempdir().expect("a temporary directory");
        assert!(RealFileSystem.lock_to_read(never.path()).expect("nobody has it").is_none());
        assert!(!never.path().join(LOCK_FILE).exists(), "nothing is left behind");
    }

    #[test]
    fn replace_file_leaves_the_new_content_and_no_temporary_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for content in [b"one".as_slice(), b"two"] {
            replace_file(&RealFileSystem, dir.path(), "CURRENT", content).expect("replaced");
            let read = read_file(&RealFileSystem, &dir.path().join("CURRENT"), 100).expect("read");
            assert_eq!(read, content);
        }
        assert_eq!(RealFileSystem.list(dir.path()).expect("listed"), ["CURRENT"]);
        let error = read_file(&RealFileSystem, &dir.path().join("CURRENT"), 2).expect_err("large");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_file_system_tells_its_space() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let space = RealFileSystem.space(dir.path()).expect("space");
        assert!(space.total > 0 && space.available <= space.total, "{space:?}");
    }
}
