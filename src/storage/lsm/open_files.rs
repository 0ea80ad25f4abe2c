//! The table files that are open: at most so many for all engines of an environment, because a process has only so many
//! handles.
//!
//! A table that was opened keeps its index and what else it needs in memory for as long as it lives. Its **handle** may
//! be closed meanwhile, and is opened again, by its path, by the next read that no cache answers. Which one goes is
//! decided by a clock (second chance): a hand goes round the open handles, passes over those that were read since it
//! last came by, and closes the first that was not.
//!
//! Invariants:
//!
//! * A handle is open if and only if it is on the ring, and the ring never holds more than the limit. Tables that are
//!   gone have closed theirs; their places on the ring are free once the hand comes by.
//! * Each thread that reads may have one more open for a moment: a handle is closed when the last read from it is done,
//!   and opened before there is room for it.
//! * The file of a table is there, under its name, as long as its [`TableFile`](super::files::TableFile): whoever reads a
//!   table keeps that. Should somebody have put another file in its place, the checksums of the blocks tell: they cover
//!   the table's uid.
//!
//! A read takes no lock while its handle is open. The lock of the ring is a leaf; no file is opened or read under it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use crate::util::fs::{File, FileSystem};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct OpenFiles {
    // Constant.
    fs: Arc<dyn FileSystem>,
    limit: usize,
    // Own synchronisation.
    ring: Mutex<Ring>,
    opened: AtomicU64,
}

#[derive(Debug, Default)]
struct Ring {
    files: Vec<Weak<TableHandle>>,
    /// Where the hand is.
    hand: usize,
}

/// The file of one table: open now, or opened by the next read.
#[derive(Debug)]
struct TableHandle {
    // Constant.
    owner: Arc<OpenFiles>,
    path: PathBuf,
    this: Weak<Self>,
    /// Changed under the ring's lock only.
    open: ArcSwapOption<Open>,
    /// Whether it was read since the hand came by.
    was_read: AtomicBool,
}

/// What is behind a thin pointer, as the swap wants it.
#[derive(Debug)]
struct Open(Arc<dyn File>);

impl OpenFiles {
    /// No more than `limit` files of `fs` are open, which is at least one.
    pub(crate) fn new(fs: Arc<dyn FileSystem>, limit: usize) -> Arc<Self> {
        let (ring, opened) = (Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { fs, limit: limit.max(1), ring, opened })
    }

    /// The file system that they are on.
    pub(crate) fn fs(&self) -> &Arc<dyn FileSystem> {
        &self.fs
    }

    /// Opens a file to be read, for good as far as its reader knows.
    pub(crate) fn open(self: &Arc<Self>, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.handle(path)?)
    }

    fn handle(self: &Arc<Self>, path: &Path) -> io::Result<Arc<TableHandle>> {
        let file = Arc::new_cyclic(|this| TableHandle {
            owner: Arc::clone(self),
            path: path.to_owned(),
            this: Weak::clone(this),
            open: ArcSwapOption::empty(),
            was_read: AtomicBool::new(false),
        });
        file.reopen()?;
        Ok(file)
    }

    /// Handles that are open, and how often one was opened.
    pub(crate) fn figures(&self) -> (usize, u64) {
        let ring = self.ring.lock();
        let open = ring.files.iter().filter(|file| file.strong_count() > 0).count();
        (open, self.opened.load(Ordering::Relaxed))
    }
}

impl Ring {
    /// Takes handles off until one more has room. What they had open is closed when it is dropped.
    fn make_room(&mut self, limit: usize) -> Vec<Arc<Open>> {
        let mut closed = Vec::new();
        // After one round each has had its second chance, however often it is read.
        let mut chances = self.files.len();
        while self.files.len() >= limit {
            self.hand %= self.files.len();
            let file = self.files[self.hand].upgrade();
            let was_read = |file: &TableHandle| file.was_read.swap(false, Ordering::Relaxed);
            if chances > 0 && file.as_deref().is_some_and(was_read) {
                chances -= 1;
                self.hand += 1;
                continue;
            }
            self.files.swap_remove(self.hand);
            closed.extend(file.and_then(|file| file.open.swap(None)));
        }
        closed
    }
}

impl TableHandle {
    fn with<T>(&self, read: impl FnOnce(&dyn File) -> io::Result<T>) -> io::Result<T> {
        let open = self.open.load();
        let Some(open) = &*open else { return read(&*self.reopen()?.0) };
        // Most often it is set already, and then readers need not take the line from each other.
        if !self.was_read.load(Ordering::Relaxed) {
            self.was_read.store(true, Ordering::Relaxed);
        }
        read(&*open.0)
    }

    #[cold]
    fn reopen(&self) -> io::Result<Arc<Open>> {
        let owner = &self.owner;
        let open = Arc::new(Open(owner.fs.open(&self.path)?));
        owner.opened.fetch_add(1, Ordering::Relaxed);
        let mut ring = owner.ring.lock();
        // Of two who open at the same time the first wins.
        if let Some(open) = self.open.load_full() {
            return Ok(open);
        }
        let closed = ring.make_room(owner.limit);
        ring.files.push(Weak::clone(&self.this));
        self.was_read.store(true, Ordering::Relaxed);
        self.open.store(Some(Arc::clone(&open)));
        drop(ring);
        drop(closed);
        Ok(open)
    }
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "a table is only read once it is there")
}

impl File for TableHandle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|file| file.read_at(buffer, offset))
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(unsupported())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(unsupported())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Err(unsupported())
    }

    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(unsupported())
    }

    fn size(&self) -> io::Result<u64> {
        self.with(|file| file.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::fs::sim::{Effect, Fault, Operation, SimFileSystem};

    fn path(number: usize) -> PathBuf {
        format!("/{number:06}.sst").into()
    }

    /// So many files, each with its number in it.
    fn files(count: usize) -> SimFileSystem {
        let fs = SimFileSystem::new(1);
        for number in 0..count {
            let file = fs.create(&path(number)).expect("creates");
            file.write_at(&number.to_le_bytes(), 0).expect("writes");
        }
        fs
    }

    fn read(file: &dyn File) -> usize {
        let mut bytes = [0; 8];
        assert_eq!(file.read_at(&mut bytes, 0).expect("reads"), 8);
        usize::from_le_bytes(bytes)
    }

    #[test]
    fn more_tables_than_handles_are_all_read_and_no_more_than_the_limit_is_open() {
        let open_files = OpenFiles::new(Arc::new(files(20)), 3);
        let tables: Vec<_> =
            (0..20).map(|number| open_files.open(&path(number)).expect("opens")).collect();
        for round in 0..5 {
            for number in 0..20 {
                let number = (number * 7 + round) % 20;
                assert_eq!(read(&*tables[number]), number);
                assert_eq!(open_files.figures().0, 3);
            }
        }
        assert_eq!(tables[5].size().expect("it is there"), 8);
        drop(tables);
        assert_eq!(open_files.figures().0, 0, "handles go with their tables");
    }

    #[test]
    fn as_long_as_all_have_room_each_is_opened_once() {
        let open_files = OpenFiles::new(Arc::new(files(4)), 4);
        let tables = [0, 1, 2, 3].map(|number| open_files.open(&path(number)).expect("opens"));
        for _ in 0..10 {
            for (number, table) in tables.iter().enumerate() {
                assert_eq!(read(&**table), number);
            }
        }
        assert_eq!(open_files.figures(), (4, 4));
    }

    #[test]
    fn the_handle_that_is_read_stays_and_those_that_are_not_make_room() {
        let open_files = OpenFiles::new(Arc::new(files(50)), 4);
        let hot = open_files.open(&path(0)).expect("opens");
        let mut cold = Vec::new();
        for number in 1..50 {
            read(&*hot);
            cold.push(open_files.open(&path(number)).expect("opens"));
        }
        let (_, opened) = open_files.figures();
        read(&*hot);
        // The first ones come while nobody has had a second chance yet.
        assert!(opened <= 50 + 2, "{opened} times for 50 files");
        assert_eq!(open_files.figures().1, opened, "it is open still");
    }

    #[test]
    fn a_handle_that_cannot_be_opened_again_fails_its_read_and_later_works() {
        let fs = files(2);
        let open_files = OpenFiles::new(Arc::new(fs.clone()), 1);
        let first = open_files.open(&path(0)).expect("opens");
        let _second = open_files.open(&path(1)).expect("opens");
        fs.inject(Fault::next(Operation::Open, "000000", Effect::Io));
        first.read_at(&mut [0; 8], 0).expect_err("there are no handles left in the system");
        assert_eq!(read(&*first), 0);
        assert!(open_files.open(&path(9)).is_err(), "there is no such file");
        assert_eq!(open_files.figures().0, 1);
    }

    #[test]
    fn of_two_who_open_a_handle_again_at_the_same_time_both_read_from_the_first() {
        let open_files = OpenFiles::new(Arc::new(files(1)), 2);
        let table = open_files.handle(&path(0)).expect("opens");
        let first = table.open.load_full().expect("it is open");
        let second = table.reopen().expect("as if it had been closed a moment ago");
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(open_files.figures(), (1, 2));
    }

    #[test]
    fn threads_that_read_more_files_than_handles_each_read_their_own() {
        const THREADS: usize = 4;
        let open_files = OpenFiles::new(Arc::new(files(8)), 2);
        let tables: Vec<_> =
            (0..8).map(|number| open_files.open(&path(number)).expect("opens")).collect();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (tables, open_files) = (&tables, &open_files);
                scope.spawn(move || {
                    for step in 0..500 {
                        let number = (step * (thread + 1) + thread) % tables.len();
                        assert_eq!(read(&*tables[number]), number);
                        assert!(open_files.figures().0 <= 2);
                    }
                });
            }
        });
    }
}
