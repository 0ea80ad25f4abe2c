//! Writes a table: entries in order go in, a durable file and what it holds come out.
//!
//! Callers: flush and compaction. The name of the file becomes durable with the caller's sync of the directory, and
//! the table becomes part of the engine with the caller's manifest. A builder that is dropped unfinished leaves a
//! file without a footer, which no manifest names: the removal of orphans takes it.
//!
//! Memory: one data block, a write buffer, the separators and one hash for each distinct key of the table.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block_builder::BlockBuilder;
use super::filter::{FilterBuilder, PIECE_BYTES};
use super::format::{FOOTER_BYTES, Footer, SEAL_BYTES, Sealer, TableUid, seal_raw};
use super::index::{IndexBuilder, separate};
use super::properties::Properties;
use super::range_deletions::RangeDeletions;
use crate::storage::lsm::key::{InternalEntry, KeyHash, Kind, Ordinal, SEQNO_MAX};
use crate::storage::lsm::options::TableOptions;
use crate::storage::{Error, KEY_BYTES_MAX, Result, Seqno, VALUE_BYTES_MAX};
use crate::util::fs::{File, FileSystem, is_disk_full};

/// Bytes gathered before a write.
const WRITE_BYTES: usize = 256 << 10;

/// The data of a table ends before this offset, so that what follows it still has offsets of 32 bits.
const DATA_BYTES_MAX: u64 = 3 << 30;

/// Blocks of several entries are no larger than this, whatever the options say.
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// Pieces of a cut index have about this size: what one miss reads.
const INDEX_PIECE_BYTES: usize = 32 << 10;

/// What was written, for the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableMetadata {
    /// In the footer of the file.
    pub(crate) uid: TableUid,
    /// Of the file.
    pub(crate) size_bytes: u64,
    /// As in the file.
    pub(crate) properties: Properties,
}

/// Writes one table.
pub(crate) struct TableBuilder {
    // Constant.
    file: Arc<dyn File>,
    path: PathBuf,
    uid: TableUid,
    options: TableOptions,
    // What is not in the file yet.
    buffer: Vec<u8>,
    written: u64,
    block: BlockBuilder,
    payload: Vec<u8>,
    sealer: Sealer,
    // What is written at the end.
    index: IndexBuilder,
    filter: FilterBuilder,
    range_deletions: Vec<(Vec<u8>, Vec<u8>, Seqno)>,
    properties: Properties,
    /// That of the entry added last; its key is the largest of the properties.
    last_ordinal: Ordinal,
}

impl TableBuilder {
    /// Creates the file, which must not exist. `uid` must be random.
    pub(crate) fn create(
        fs: &dyn FileSystem,
        path: &Path,
        uid: TableUid,
        options: TableOptions,
    ) -> Result<Self> {
        assert!(options.block_bytes <= BLOCK_BYTES_MAX, "a block of {} bytes", options.block_bytes);
        let file = fs.create(path).map_err(|error| Error::io("create", path, error))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            uid,
            buffer: Vec::with_capacity(WRITE_BYTES + options.block_bytes),
            written: 0,
            block: BlockBuilder::new(options.bundle_entries, options.fingerprints),
            payload: Vec::new(),
            sealer: Sealer::new(options.compression),
            index: IndexBuilder::default(),
            filter: FilterBuilder::default(),
            range_deletions: Vec::new(),
            properties: Properties::empty(),
            last_ordinal: Ordinal::FIRST,
            options,
        })
    }

    /// Adds an entry, which must come after all before it in the order of internal keys. `hash` is that of its user key.
    ///
    /// [`Error::Invalid`] when it does not, or is over a limit; the table is as before then.
    pub(crate) fn add(&mut self, entry: &InternalEntry<'_>, hash: KeyHash) -> Result<()> {
        debug_assert_eq!(hash, KeyHash::of(entry.key), "the hash is that of the key");
        self.check(entry)?;
        let is_new_key = self.last_key() != Some(entry.key);
        if !self.block.is_empty() && self.block.size_with(entry) > self.options.block_bytes {
            self.finish_block()?;
        }
        if self.block.is_empty() {
            self.begin_block(entry)?;
        }
        self.block.add(entry, hash);
        if is_new_key && self.options.filter_bits_per_key > 0 {
            self.filter.add(hash);
        }
        self.properties.add_entry(entry, is_new_key);
        self.last_ordinal = entry.ordinal();
        Ok(())
    }

    /// Adds the deletion of all keys from `start` to before `end` by the write `seqno`. In any order, between entries
    /// or after them.
    pub(crate) fn add_range_deletion(
        &mut self,
        start: &[u8],
        end: &[u8],
        seqno: Seqno,
    ) -> Result<()> {
        // A range may end behind the longest key.
        check_bytes("range deletion start", start.len(), KEY_BYTES_MAX + 1)?;
        check_bytes("range deletion end", end.len(), KEY_BYTES_MAX + 1)?;
        if seqno > SEQNO_MAX {
            return Err(self.refuse(&format!("the seqno {} has more than 56 bits", seqno.0)));
        }
        if start < end {
            self.range_deletions.push((start.to_vec(), end.to_vec(), seqno));
        }
        Ok(())
    }

    /// Bytes of the table so far, without what follows its data.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.position() + self.open_block_bytes()
    }

    /// Whether there is nothing in it, not even a range deletion; such a table cannot be finished.
    pub(crate) const fn is_empty(&self) -> bool {
        self.properties.entries == 0 && self.range_deletions.is_empty()
    }

    /// Writes what is left and syncs the file: after it, the content survives a power loss. After an error, also
    /// [`Error::DiskFull`], the file is good for nothing and never synced again: remove it and write another one.
    pub(crate) fn finish(mut self) -> Result<TableMetadata> {
        if self.is_empty() {
            return Err(self.refuse("a table holds at least one entry or range deletion"));
        }
        if !self.block.is_empty() {
            self.finish_block()?;
        }
        let data_end = self.offset()?;
        self.write_filter()?;
        let range_deletions = self.offset()?;
        self.write_range_deletions()?;
        let index = self.offset()?;
        self.write_index(data_end)?;
        let properties = self.offset()?;
        self.payload.clear();
        self.properties.encode(&mut self.payload);
        self.write_payload()?;
        let size = self.position() + FOOTER_BYTES as u64;
        let footer = Footer {
            filter: data_end,
            range_deletions,
            index,
            properties,
            size: u32::try_from(size).map_err(|_| self.too_large())?,
            uid: self.uid,
        };
        self.buffer.extend_from_slice(&footer.encode());
        self.write_buffer()?;
        // Where space is given out late, as ext4 and XFS do it, a full disk shows here. The file is in nobody's use: the
        // caller drops it, and another one may be written.
        self.file.sync_data().map_err(|error| self.failed("sync", error))?;
        Ok(TableMetadata { uid: self.uid, size_bytes: size, properties: self.properties })
    }

    fn check(&self, entry: &InternalEntry<'_>) -> Result<()> {
        check_bytes("key", entry.key.len(), KEY_BYTES_MAX)?;
        check_bytes("value", entry.value.len(), VALUE_BYTES_MAX)?;
        if entry.seqno > SEQNO_MAX {
            return Err(self.refuse(&format!("the seqno {} has more than 56 bits", entry.seqno.0)));
        }
        let consistent = match entry.kind {
            Kind::Put => entry.expires_at.is_none(),
            Kind::PutTtl => entry.expires_at.is_some(),
            Kind::Delete => entry.expires_at.is_none() && entry.value.is_empty(),
            Kind::RangeDelete => false,
        };
        if !consistent {
            return Err(self.refuse(&format!("an entry of kind {:?} has no such form", entry.kind)));
        }
        let last = self.last_key().map(|key| (key, self.last_ordinal));
        if last.is_some_and(|last| last >= (entry.key, entry.ordinal())) {
            return Err(self.refuse("entries must come in the order of internal keys"));
        }
        Ok(())
    }

    /// User key of the entry added last.
    fn last_key(&self) -> Option<&[u8]> {
        (self.properties.entries > 0).then_some(&self.properties.largest.key)
    }

    fn begin_block(&mut self, entry: &InternalEntry<'_>) -> Result<()> {
        let offset = self.offset()?;
        if u64::from(offset) + (entry.key.len() + entry.value.len()) as u64 > DATA_BYTES_MAX {
            return Err(self.too_large());
        }
        let (separator, ordinal) = match self.last_key() {
            // The first separator is never needed; its whole key, unlike an empty one, shares a prefix with the others.
            None => (entry.key, Ordinal::FIRST),
            Some(last) if last == entry.key => (entry.key, entry.ordinal()),
            Some(last) => (separate(last, entry.key), Ordinal::FIRST),
        };
        self.index.add(separator, ordinal, offset);
        Ok(())
    }

    fn finish_block(&mut self) -> Result<()> {
        self.properties.data_blocks += 1;
        self.properties.dense_blocks += u32::from(self.block.is_dense());
        let offset = self.offset()?;
        self.payload.clear();
        self.block.finish(&mut self.payload);
        self.sealer.seal(&self.payload, self.uid, offset, &mut self.buffer);
        self.write_buffer_when_full()
    }

    fn write_filter(&mut self) -> Result<()> {
        let filter = std::mem::take(&mut self.filter);
        let (shape, lines) = filter.finish(self.options.filter_bits_per_key);
        self.properties.filter = shape;
        for piece in lines.chunks(PIECE_BYTES) {
            let offset = self.offset()?;
            seal_raw(piece, self.uid, offset, &mut self.buffer);
            self.write_buffer_when_full()?;
        }
        Ok(())
    }

    fn write_range_deletions(&mut self) -> Result<()> {
        if self.range_deletions.is_empty() {
            return Ok(());
        }
        let deletions = RangeDeletions::fragment(&self.range_deletions);
        self.properties.add_range_deletions(&deletions);
        self.payload.clear();
        deletions.encode(&mut self.payload);
        self.write_payload()
    }

    fn write_index(&mut self, data_end: u32) -> Result<()> {
        let mut index = std::mem::take(&mut self.index);
        let mut end = data_end;
        if index.size_bytes() > self.options.index_bytes_max {
            let mut top = IndexBuilder::default();
            for run in index.cut(INDEX_PIECE_BYTES.min(self.options.index_bytes_max)) {
                let (key, ordinal) = index.separator(run.start);
                top.add(key, ordinal, self.offset()?);
                self.payload.clear();
                index.encode(run, data_end, &mut self.payload);
                self.write_payload()?;
                self.properties.index_pieces += 1;
            }
            index = top;
            end = self.offset()?;
        }
        self.properties.index_top = self.offset()?;
        if index.len() == 0 {
            return Ok(());
        }
        self.payload.clear();
        index.encode(0..index.len(), end, &mut self.payload);
        self.write_payload()
    }

    /// Writes what is in `payload` as a block that is not compressed.
    fn write_payload(&mut self) -> Result<()> {
        let offset = self.offset()?;
        seal_raw(&self.payload, self.uid, offset, &mut self.buffer);
        self.write_buffer_when_full()
    }

    fn write_buffer_when_full(&mut self) -> Result<()> {
        if self.buffer.len() >= WRITE_BYTES { self.write_buffer() } else { Ok(()) }
    }

    fn write_buffer(&mut self) -> Result<()> {
        self.file
            .write_at(&self.buffer, self.written)
            .map_err(|error| self.failed("write", error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        // One huge value must not be paid for until the end of the table.
        self.buffer.shrink_to(2 * WRITE_BYTES);
        Ok(())
    }

    const fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn open_block_bytes(&self) -> u64 {
        if self.block.is_empty() { 0 } else { (self.block.size_bytes() + SEAL_BYTES) as u64 }
    }

    fn offset(&self) -> Result<u32> {
        u32::try_from(self.position()).map_err(|_| self.too_large())
    }

    fn failed(&self, operation: &'static str, error: std::io::Error) -> Error {
        if is_disk_full(&error) {
            return Error::DiskFull { path: self.path.clone() };
        }
        Error::io(operation, &self.path, error)
    }

    fn too_large(&self) -> Error {
        self.refuse("a table must be smaller than 4 GiB, its data smaller than 3 GiB")
    }

    fn refuse(&self, why: &str) -> Error {
        Error::Invalid(format!("table {}: {why}", self.path.display()))
    }
}

fn check_bytes(what: &str, bytes: usize, bytes_max: usize) -> Result<()> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(Error::Invalid(format!("{what} of {bytes} bytes: a table takes at most {bytes_max}")))
}
