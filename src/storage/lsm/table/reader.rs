//! Reads a table: point lookups, and the parts that cursors are made of.
//!
//! [`Table::open`] checks the footer, the properties, the range deletions and the top of the index, and that all of
//! them agree about what lies where; after it, no length from the file is used that was not checked. Data blocks,
//! pieces of the filter and of a cut index are read when asked for, through the cache.
//!
//! A lookup takes no lock, and allocates nothing when what it needs is in memory: one line of the filter, a binary
//! search in an array of numbers, one slot, one search in a block.

use std::path::Path;
use std::sync::Arc;

use super::block::{DataBlock, Found};
use super::cursor::TableCursor;
use super::filter::{FilterPiece, PIECE_LINES};
use super::format::{Damage, PAYLOAD_BYTES_MAX, SEAL_BYTES, SEAL_BYTES_U32, TableUid};
use super::index::{BlockPlace, IndexBlock};
use super::lookups::Lookups;
use super::properties::Properties;
use super::range_deletions::RangeDeletions;
use super::source::{Access, Source, Tail};
use crate::storage::lsm::cache::{BlockCache, Cached, Pinned, Priority, Slots};
use crate::storage::lsm::key::{InternalEntry, KeyHash, Ordinal};
use crate::storage::{Error, KeyRange, Result, Seqno};
use crate::util::fs::{File, FileSystem};

/// Largest block of properties, in bytes.
const PROPERTIES_BYTES_MAX: u32 = 64 << 10;

/// Least bytes of a sealed data block; bounds how many slots a damaged count can make us reserve.
const DATA_BLOCK_BYTES_MIN: u32 = 24 + SEAL_BYTES_U32;

/// An open table. Shared by all who read it; see the [module](self).
#[derive(Debug)]
pub(crate) struct Table {
    // Constant.
    source: Source,
    properties: Properties,
    index: Index,
    range_deletions: RangeDeletions,
    // Own synchronisation.
    data: Slots<DataBlock>,
    filter: Slots<FilterPiece>,
    index_pieces: Slots<IndexBlock>,
    lookups: Arc<Lookups>,
    _pinned: Pinned,
}

/// The index, as far as it stays in memory.
#[derive(Debug)]
pub(crate) enum Index {
    /// There are no data blocks.
    Empty,
    /// All of it: where the data blocks are.
    Whole(IndexBlock),
    /// The top of it: where the pieces are.
    Cut(IndexBlock),
}

impl Table {
    /// Opens the file at `path`. `uid` is the one it must have, when the caller knows.
    pub(crate) fn open(
        fs: &dyn FileSystem,
        path: &Path,
        cache: &Arc<BlockCache>,
        uid: Option<TableUid>,
    ) -> Result<Self> {
        let file = fs.open(path).map_err(|error| Error::io("open", path, error))?;
        Self::open_file(file, path, cache, uid)
    }

    /// As [`Self::open`], of a file that was opened.
    pub(crate) fn open_file(
        file: Arc<dyn File>,
        path: &Path,
        cache: &Arc<BlockCache>,
        uid: Option<TableUid>,
    ) -> Result<Self> {
        let (source, tail) = Source::open(file, path)?;
        let footer = *source.footer();
        if uid.is_some_and(|uid| uid != footer.uid) {
            return Err(source.corruption(footer.size, "this is another table than the one named"));
        }
        let properties = open_properties(&source, &tail)?;
        let range_deletions = open_range_deletions(&source, &tail)?;
        let index = open_index(&source, &tail, &properties)?;
        let index_bytes = match &index {
            Index::Empty => 0,
            Index::Whole(index) | Index::Cut(index) => index.memory_bytes(),
        };
        let data = Slots::new(cache, properties.data_blocks, Priority::Data);
        let filter = Slots::new(cache, properties.filter.pieces(), Priority::Meta);
        let index_pieces = Slots::new(cache, properties.index_pieces, Priority::Meta);
        let slots_bytes = data.memory_bytes() + filter.memory_bytes() + index_pieces.memory_bytes();
        let bytes = size_of::<Self>() + index_bytes + slots_bytes + range_deletions.memory_bytes();
        Ok(Self {
            source,
            properties,
            index,
            range_deletions,
            data,
            filter,
            index_pieces,
            lookups: Arc::clone(cache.lookups()),
            _pinned: cache.pin(bytes),
        })
    }

    /// What the table says about itself.
    pub(crate) const fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Its range deletions. A lookup does not apply them: they hide entries of other tables as well.
    pub(crate) const fn range_deletions(&self) -> &RangeDeletions {
        &self.range_deletions
    }

    /// Hands `visit` the newest entry of `key` that a read at `at` sees, whatever its kind; returns whether there is
    /// one. `hash` is that of `key`. `visit` should be short: the block cannot be freed meanwhile.
    #[inline]
    pub(crate) fn get(
        &self,
        key: &[u8],
        hash: KeyHash,
        at: Seqno,
        visit: impl FnOnce(InternalEntry<'_>),
    ) -> Result<bool> {
        let sample = self.lookups.sample();
        if !self.may_contain(hash)? {
            sample.inspect(|lookups| lookups.count_filtered());
            return Ok(false);
        }
        let target = Ordinal::seek(at);
        let Some(place) = self.locate(key, target)? else { return Ok(false) };
        let (cached, found) = if let Some(block) = self.data.get(place.number) {
            (true, self.get_in(&block, key, hash, at, visit)?)
        } else {
            let block = self.read_data(place)?;
            (false, self.get_in(block.block(), key, hash, at, visit)?)
        };
        sample.inspect(|lookups| lookups.count_passed(cached, found));
        Ok(found)
    }

    #[inline]
    fn get_in(
        &self,
        block: &DataBlock,
        key: &[u8],
        hash: KeyHash,
        at: Seqno,
        visit: impl FnOnce(InternalEntry<'_>),
    ) -> Result<bool> {
        match block.find(key, hash, Ordinal::seek(at)) {
            Found::At(index) => {
                visit(block.entry(index, key));
                Ok(true)
            }
            Found::Nothing => Ok(false),
            Found::Beyond => self.get_beyond(key, at, visit),
        }
    }

    /// The versions of the key go on in the next block: rare, and so done the simple way.
    #[cold]
    fn get_beyond(
        &self,
        key: &[u8],
        at: Seqno,
        visit: impl FnOnce(InternalEntry<'_>),
    ) -> Result<bool> {
        let mut cursor = TableCursor::new(self, Access::Point, KeyRange::ALL);
        cursor.seek(key, at)?;
        match cursor.entry() {
            Some(entry) if entry.key == key => {
                visit(entry);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether the table may have an entry of the key with this hash; false is certain. True when there is no filter.
    #[inline]
    pub(crate) fn may_contain(&self, hash: KeyHash) -> Result<bool> {
        let shape = self.properties.filter;
        if shape.lines == 0 {
            return Ok(self.properties.data_blocks > 0);
        }
        let (piece, line) = shape.place(hash);
        if let Some(piece) = self.filter.get(piece) {
            return Ok(piece.may_contain(line, hash, shape.probes));
        }
        let piece = self.filter_piece(piece)?;
        Ok(piece.block().may_contain(line, hash, shape.probes))
    }

    /// A cursor over the entries whose user keys lie in `range`. Not positioned yet. `table` is an `Arc<Table>`, or a
    /// reference for a short time.
    pub(crate) fn cursor<T: std::ops::Deref<Target = Self>>(
        table: T,
        access: Access,
        range: KeyRange<'_>,
    ) -> TableCursor<T> {
        TableCursor::new(table, access, range)
    }

    /// The data block that may hold the first entry at or after (`key`, `target`), see [`IndexBlock::find`].
    #[inline]
    fn locate(&self, key: &[u8], target: Ordinal) -> Result<Option<BlockPlace>> {
        match &self.index {
            Index::Empty => Ok(None),
            Index::Whole(index) => Ok(Some(index.place(index.find(key, target)))),
            Index::Cut(top) => {
                let place = top.place(top.find(key, target));
                let held = self.index_pieces.get(place.number);
                let place = if let Some(piece) = held {
                    piece.place(piece.find(key, target))
                } else {
                    let piece = self.index_piece(place)?;
                    piece.block().place(piece.block().find(key, target))
                };
                Ok(Some(place))
            }
        }
    }

    pub(super) const fn source(&self) -> &Source {
        &self.source
    }

    pub(super) const fn index(&self) -> &Index {
        &self.index
    }

    pub(super) const fn data(&self) -> &Slots<DataBlock> {
        &self.data
    }

    #[cold]
    fn read_data(&self, place: BlockPlace) -> Result<Arc<Cached<DataBlock>>> {
        self.data.get_or_read(place.number, || {
            let block = self.source.read_data(place)?;
            let bytes = block.memory_bytes();
            Ok((block, bytes))
        })
    }

    /// A piece of a cut index.
    pub(super) fn index_piece(&self, place: BlockPlace) -> Result<Arc<Cached<IndexBlock>>> {
        self.index_pieces.get_or_read(place.number, || {
            let payload = self.source.read(place.offset, place.offset + place.bytes)?;
            let corruption = |damage| self.source.corruption(place.offset, damage);
            let piece = IndexBlock::parse(payload).map_err(corruption)?;
            let footer = self.source.footer();
            check_data_places(&piece, footer.filter, self.properties.data_blocks)
                .map_err(corruption)?;
            let bytes = piece.memory_bytes();
            Ok((piece, bytes))
        })
    }

    /// A piece of the filter.
    pub(super) fn filter_piece(&self, number: u32) -> Result<Arc<Cached<FilterPiece>>> {
        self.filter.get_or_read(number, || {
            let shape = self.properties.filter;
            let full = (shape.piece_bytes(0) + SEAL_BYTES) as u64;
            let start = u64::from(self.source.footer().filter) + u64::from(number) * full;
            let end = start + (shape.piece_bytes(number) + SEAL_BYTES) as u64;
            let offset = |at| u32::try_from(at).expect("the filter was found to fit its section");
            let start = offset(start);
            let payload = self.source.read(start, offset(end))?;
            let piece = FilterPiece::parse(shape, number, payload)
                .map_err(|damage| self.source.corruption(start, damage))?;
            let bytes = piece.memory_bytes();
            Ok((piece, bytes))
        })
    }
}

fn open_properties(source: &Source, tail: &Tail) -> Result<Properties> {
    let footer = source.footer();
    let (start, end) = (footer.properties, footer.size - 64);
    let corruption = |damage| source.corruption(start, damage);
    if end - start > PROPERTIES_BYTES_MAX {
        return Err(corruption(format!("properties of {} bytes", end - start)));
    }
    let payload = source.read_with_tail(tail, start, end)?;
    let properties = Properties::decode(&payload).map_err(corruption)?;
    check_properties(source, &properties).map_err(corruption)?;
    Ok(properties)
}

/// Whether the sections have the sizes that the properties imply.
fn check_properties(source: &Source, properties: &Properties) -> Result<(), Damage> {
    let footer = source.footer();
    if properties.data_blocks > footer.filter / DATA_BLOCK_BYTES_MIN {
        let (blocks, bytes) = (properties.data_blocks, footer.filter);
        return Err(format!("{blocks} data blocks in {bytes} bytes"));
    }
    let shape = properties.filter;
    let pieces = u64::from(shape.pieces()) * SEAL_BYTES as u64;
    let filter_bytes = u64::from(shape.lines) * 64 + pieces;
    if u64::from(footer.range_deletions - footer.filter) != filter_bytes {
        return Err(format!("a filter of {} lines does not fit its section", shape.lines));
    }
    let index_bytes = footer.properties - footer.index;
    if properties.index_top < footer.index
        || properties.index_top > footer.properties
        || properties.index_pieces > index_bytes / SEAL_BYTES_U32
        || (properties.index_pieces == 0) != (properties.index_top == footer.index)
        || (properties.data_blocks == 0) != (index_bytes == 0)
        || (properties.data_blocks == 0) != (footer.filter == 0)
    {
        return Err("the index does not fit its section".to_owned());
    }
    let has_range_deletions = footer.index > footer.range_deletions;
    if has_range_deletions != (properties.range_deletions > 0) {
        return Err("the range deletions are not as many as they should be".to_owned());
    }
    Ok(())
}

fn open_range_deletions(source: &Source, tail: &Tail) -> Result<RangeDeletions> {
    let (start, end) = (source.footer().range_deletions, source.footer().index);
    if start == end {
        return Ok(RangeDeletions::default());
    }
    let payload = source.read_with_tail(tail, start, end)?;
    RangeDeletions::decode(&payload).map_err(|damage| source.corruption(start, damage))
}

fn open_index(source: &Source, tail: &Tail, properties: &Properties) -> Result<Index> {
    let footer = source.footer();
    if properties.data_blocks == 0 {
        return Ok(Index::Empty);
    }
    let (start, end) = (properties.index_top, footer.properties);
    let corruption = |damage: Damage| source.corruption(start, damage);
    let payload = source.read_with_tail(tail, start, end)?;
    let index = IndexBlock::parse(payload).map_err(corruption)?;
    let cut = properties.index_pieces > 0;
    let (blocks, from, to) = if cut {
        (properties.index_pieces, footer.index, properties.index_top)
    } else {
        (properties.data_blocks, 0, footer.filter)
    };
    let complete = index.first() == 0
        && index.len() == blocks as usize
        && index.place(0).offset == from
        && index.end() == to;
    if !complete {
        return Err(corruption("the index does not cover all blocks".to_owned()));
    }
    Ok(if cut { Index::Cut(index) } else { Index::Whole(index) })
}

/// Whether a piece of the index leads to data blocks that there are.
fn check_data_places(piece: &IndexBlock, data_end: u32, blocks: u32) -> Result<(), Damage> {
    let after = u64::from(piece.first()) + piece.len() as u64;
    if piece.end() > data_end || after > u64::from(blocks) {
        return Err("the piece of the index leads out of the data".to_owned());
    }
    Ok(())
}

const _: () = assert!(PIECE_LINES as usize * 64 < PAYLOAD_BYTES_MAX, "a filter piece is a block");
