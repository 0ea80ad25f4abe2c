//! The file of a table, read block by block, and read ahead of a cursor.
//!
//! Every error that comes from here names the file, and damage names the offset.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block::DataBlock;
use super::format::{Damage, FOOTER_BYTES, Footer, unseal, unseal_slice};
use super::index::BlockPlace;
use crate::storage::{Error, Result};
use crate::util::fs::File;

/// Read from the end of a file when it is opened: footer, properties and mostly the index, in one trip to the disk.
const TAIL_BYTES: u64 = 64 << 10;

/// First read of a cursor that goes on to the next block; doubles with each further one.
const AHEAD_BYTES_MIN: u32 = 16 << 10;

/// Largest read of a scan.
const AHEAD_BYTES_MAX: u32 = 2 << 20;

/// Each read of a cursor that reads a whole table once.
const SEQUENTIAL_BYTES: u32 = 1 << 20;

/// Sealed blocks up to this size are read into a buffer of the thread.
const SEALED_BYTES_MAX: usize = 64 << 10;

thread_local! {
    /// Where sealed blocks are read to, so that no memory is taken and zeroed for each. As long as the largest so far.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// An open table file with its checked footer.
#[derive(Debug)]
pub(crate) struct Source {
    file: Arc<dyn File>,
    path: PathBuf,
    footer: Footer,
}

/// The last bytes of a file, from `start` on.
pub(crate) struct Tail {
    start: u64,
    bytes: Vec<u8>,
}

impl Source {
    /// Checks the footer of a file that was opened, and hands out its tail.
    pub(crate) fn open(file: Arc<dyn File>, path: &Path) -> Result<(Self, Tail)> {
        let size = file.size().map_err(|error| Error::io("read the size", path, error))?;
        let start = size.saturating_sub(TAIL_BYTES);
        let length = usize::try_from(size - start).expect("at most the bytes of a tail");
        let mut bytes = vec![0; length];
        let read = file.read_at(&mut bytes, start).map_err(|e| Error::io("read", path, e))?;
        let footer = match bytes.last_chunk::<FOOTER_BYTES>() {
            Some(footer) if read == length => Footer::decode(footer, size),
            _ => Err(format!("the file ends after {} bytes", start + read as u64)),
        };
        let at = size.saturating_sub(FOOTER_BYTES as u64);
        let footer = footer.map_err(|damage| Error::corruption(path, at, damage))?;
        Ok((Self { file, path: path.to_owned(), footer }, Tail { start, bytes }))
    }

    /// Where the sections are.
    pub(crate) const fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Reads the footer again and compares it with what it was.
    pub(crate) fn check_footer(&self) -> Result<()> {
        let at = self.footer.size - 64;
        let mut bytes = [0; FOOTER_BYTES];
        self.read_bytes(&mut bytes, at)?;
        match Footer::decode(&bytes, u64::from(self.footer.size)) {
            Ok(footer) if footer == self.footer => Ok(()),
            Ok(_) => Err(self.corruption(at, "the footer is not what it was when opened")),
            Err(damage) => Err(self.corruption(at, damage)),
        }
    }

    /// Damage at `offset` of this file.
    pub(crate) fn corruption(&self, offset: u32, damage: impl Into<Damage>) -> Error {
        Error::corruption(&self.path, u64::from(offset), damage)
    }

    /// Reads and checks the block at `start..end`; gives its payload. The caller has checked that it lies in the file
    /// and is no larger than a block can be.
    pub(crate) fn read(&self, start: u32, end: u32) -> Result<Vec<u8>> {
        let bytes = (end - start) as usize;
        let damaged = |damage| self.corruption(start, damage);
        if bytes > SEALED_BYTES_MAX {
            let mut sealed = vec![0; bytes];
            self.read_bytes(&mut sealed, start)?;
            return unseal(sealed, self.footer.uid, start).map_err(damaged);
        }
        SEALED.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(bytes), 0);
            let sealed = &mut buffer[..bytes];
            self.read_bytes(sealed, start)?;
            unseal_slice(sealed, self.footer.uid, start).map_err(damaged)
        })
    }

    /// As [`Self::read`], without a trip to the disk when the tail has it.
    pub(crate) fn read_with_tail(&self, tail: &Tail, start: u32, end: u32) -> Result<Vec<u8>> {
        let Some(skip) = u64::from(start).checked_sub(tail.start) else {
            return self.read(start, end);
        };
        let from = usize::try_from(skip).expect("within a tail");
        let sealed = tail.bytes.get(from..from + (end - start) as usize);
        let sealed = sealed.ok_or_else(|| self.corruption(start, "a section is cut"))?;
        unseal_slice(sealed, self.footer.uid, start)
            .map_err(|damage| self.corruption(start, damage))
    }

    /// Reads one data block.
    pub(crate) fn read_data(&self, place: BlockPlace) -> Result<DataBlock> {
        let payload = self.read(place.offset, place.offset + place.bytes)?;
        DataBlock::parse(payload).map_err(|damage| self.corruption(place.offset, damage))
    }

    fn read_bytes(&self, buffer: &mut [u8], start: u32) -> Result<()> {
        let read = self
            .file
            .read_at(buffer, u64::from(start))
            .map_err(|error| Error::io("read", &self.path, error))?;
        if read == buffer.len() {
            return Ok(());
        }
        Err(self.corruption(start, format!("the file ends {} bytes early", buffer.len() - read)))
    }
}

/// What a cursor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// A few entries: blocks go through the cache, nothing is read ahead.
    Point,
    /// A range: blocks go through the cache; once a second block in a row is missing, reads grow from 16 KiB to 2 MiB.
    Scan,
    /// A whole table, once, as compaction does: reads of 1 MiB that neither ask nor fill the cache.
    Sequential,
}

/// Reads data blocks for one cursor, several at a time when they are visited in a row.
#[derive(Debug)]
pub(crate) struct Readahead {
    access: Access,
    window: u32,
    /// Number of the block visited last.
    last: Option<u32>,
    /// Bytes of the file from `start` on.
    buffer: Vec<u8>,
    start: u32,
}

impl Readahead {
    pub(crate) const fn new(access: Access) -> Self {
        Self { access, window: 0, last: None, buffer: Vec::new(), start: 0 }
    }

    /// Notes that the block was visited without being read.
    pub(crate) const fn visited(&mut self, place: BlockPlace) {
        self.last = Some(place.number);
    }

    /// Reads the block, and perhaps others that will be wanted next.
    pub(crate) fn read(&mut self, source: &Source, place: BlockPlace) -> Result<DataBlock> {
        let end = place.offset + place.bytes;
        if !self.covers(place.offset, end) {
            let forward = self.last.is_none_or(|last| place.number > last);
            self.window = self.next_window(place.number);
            if self.window <= place.bytes {
                return source.read_data(place);
            }
            self.fill(source, place, forward)?;
        }
        let from = (place.offset - self.start) as usize;
        let sealed = &self.buffer[from..from + place.bytes as usize];
        unseal_slice(sealed, source.footer.uid, place.offset)
            .and_then(DataBlock::parse)
            .map_err(|damage| source.corruption(place.offset, damage))
    }

    fn covers(&self, start: u32, end: u32) -> bool {
        start >= self.start && (end - self.start) as usize <= self.buffer.len()
    }

    /// How much to read for block `number`.
    fn next_window(&self, number: u32) -> u32 {
        let in_a_row = self.last.is_some_and(|last| last.abs_diff(number) == 1);
        match self.access {
            Access::Scan if in_a_row => (self.window * 2).clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX),
            Access::Point | Access::Scan => 0,
            Access::Sequential => SEQUENTIAL_BYTES,
        }
    }

    /// Fills the buffer with the block and what lies behind it, or before it when going backwards.
    fn fill(&mut self, source: &Source, place: BlockPlace, forward: bool) -> Result<()> {
        let data_end = source.footer.filter;
        let block_end = place.offset + place.bytes;
        let (start, end) = if forward {
            (place.offset, place.offset.saturating_add(self.window).min(data_end))
        } else {
            (block_end.saturating_sub(self.window), block_end)
        };
        self.buffer.resize((end - start) as usize, 0);
        self.start = start;
        let filled = source.read_bytes(&mut self.buffer, start);
        if filled.is_err() {
            self.buffer.clear();
        }
        filled
    }
}
