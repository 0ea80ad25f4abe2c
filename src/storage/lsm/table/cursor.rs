//! A cursor: the entries of a table in order, forwards and backwards, within bounds.
//!
//! It stands on one entry or on none (before the first positioning, beyond an end, after an error). Bounds are checked
//! when a block is entered, by finding the part of it that lies within, and not for each entry. The key of the entry is
//! put together in a buffer of the cursor; the value stays in the block.
//!
//! A cursor keeps one block in memory, also when the cache lets it go, and what it read ahead, at most 2 MiB. Whoever
//! hands out cursors counts them.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::block::DataBlock;
use super::index::{BlockPlace, IndexBlock};
use super::reader::{Index, Table};
use super::source::{Access, Readahead};
use crate::storage::lsm::cache::Cached;
use crate::storage::lsm::key::{InternalEntry, Ordinal};
use crate::storage::{KeyRange, Result, Seqno};

/// See the [module](self). `T` is `Arc<Table>`, or a reference where the table outlives the cursor anyway.
#[derive(Debug)]
pub(crate) struct TableCursor<T> {
    // Constant.
    table: T,
    access: Access,
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
    // Where it stands.
    readahead: Readahead,
    /// The piece of a cut index it is in, by number.
    piece: Option<(usize, Arc<Cached<IndexBlock>>)>,
    block: Option<Arc<Cached<DataBlock>>>,
    /// Number of the block.
    number: u32,
    /// Entries of the block that lie within the bounds.
    within: Range<usize>,
    index: usize,
    // The key of the entry.
    key: Vec<u8>,
    bundle: usize,
    prefix_bytes: usize,
}

/// No bundle has this number.
const NO_BUNDLE: usize = usize::MAX;

impl<T: Deref<Target = Table>> TableCursor<T> {
    /// Stands on no entry yet.
    pub(super) fn new(table: T, access: Access, range: KeyRange<'_>) -> Self {
        Self {
            table,
            access,
            lower: range.start.to_vec(),
            // An end before the start would leave nothing, as the start does.
            upper: range.end.map(|end| end.max(range.start).to_vec()),
            readahead: Readahead::new(access),
            piece: None,
            block: None,
            number: 0,
            within: 0..0,
            index: 0,
            key: Vec::new(),
            bundle: NO_BUNDLE,
            prefix_bytes: 0,
        }
    }

    /// The entry it stands on.
    #[inline]
    pub(crate) fn entry(&self) -> Option<InternalEntry<'_>> {
        Some(self.block.as_ref()?.block().entry(self.index, &self.key))
    }

    /// The user key of the entry, without reading its value.
    #[inline]
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.block.as_ref().map(|_| &self.key[..])
    }

    /// The place of the entry among those of its user key.
    #[inline]
    pub(crate) fn ordinal(&self) -> Option<Ordinal> {
        Some(self.block.as_ref()?.block().ordinal(self.index))
    }

    /// Both of them.
    #[inline]
    pub(crate) fn internal_key(&self) -> Option<(&[u8], Ordinal)> {
        let block = self.block.as_ref()?.block();
        Some((&self.key, block.ordinal(self.index)))
    }

    /// To the first entry within bounds.
    pub(crate) fn seek_to_first(&mut self) -> Result<bool> {
        let lower = self.lower.clone();
        self.seek_within(&lower, Ordinal::FIRST)
    }

    /// To the first entry of `key` that a read at `at` sees, or the first entry of a later key.
    pub(crate) fn seek(&mut self, key: &[u8], at: Seqno) -> Result<bool> {
        if key < &self.lower[..] {
            self.seek_to_first()
        } else {
            self.seek_within(key, Ordinal::seek(at))
        }
    }

    /// To the last entry within bounds.
    pub(crate) fn seek_to_last(&mut self) -> Result<bool> {
        let Some(upper) = &self.upper else {
            self.block = None;
            let Some(last) = self.last_place()? else { return Ok(false) };
            self.enter(last)?;
            return self.stand_before(usize::MAX);
        };
        let upper = upper.clone();
        self.seek_before(&upper)
    }

    /// To the next entry; false, and on none, when there is none within bounds.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<bool> {
        if self.block.is_none() {
            return Ok(false);
        }
        self.index += 1;
        if self.index < self.within.end {
            self.assemble();
            return Ok(true);
        }
        self.step_forward()
    }

    /// To the entry before; false, and on none, when there is none within bounds.
    #[inline]
    pub(crate) fn prev(&mut self) -> Result<bool> {
        if self.block.is_none() {
            return Ok(false);
        }
        if self.index > self.within.start {
            self.index -= 1;
            self.assemble();
            return Ok(true);
        }
        self.step_back()
    }

    fn seek_within(&mut self, key: &[u8], target: Ordinal) -> Result<bool> {
        self.block = None;
        let Some(place) = self.locate(key, target)? else { return Ok(false) };
        let index = self.enter(place)?.lower_bound(key, target).max(self.within.start);
        if index < self.within.end { Ok(self.stand(index)) } else { self.step_forward() }
    }

    fn seek_before(&mut self, key: &[u8]) -> Result<bool> {
        self.block = None;
        let Some(place) = self.locate(key, Ordinal::FIRST)? else { return Ok(false) };
        let index = self.enter(place)?.lower_bound(key, Ordinal::FIRST);
        self.stand_before(index)
    }

    /// On the last entry within bounds that comes before entry `index` of the block, or of a block before it.
    fn stand_before(&mut self, index: usize) -> Result<bool> {
        let end = index.min(self.within.end);
        if end > self.within.start { Ok(self.stand(end - 1)) } else { self.step_back() }
    }

    fn stand(&mut self, index: usize) -> bool {
        self.index = index;
        self.assemble();
        true
    }

    /// To the first entry within bounds of the blocks after this one.
    fn step_forward(&mut self) -> Result<bool> {
        while let Some(block) = self.block.take() {
            if self.within.end < block.block().len() {
                break;
            }
            let Some(place) = self.place(self.number.checked_add(1))? else { break };
            self.enter(place)?;
            if !self.within.is_empty() {
                return Ok(self.stand(self.within.start));
            }
        }
        Ok(false)
    }

    /// To the last entry within bounds of the blocks before this one.
    fn step_back(&mut self) -> Result<bool> {
        while self.block.take().is_some() {
            if self.within.start > 0 {
                break;
            }
            let Some(place) = self.place(self.number.checked_sub(1))? else { break };
            self.enter(place)?;
            if !self.within.is_empty() {
                return Ok(self.stand(self.within.end - 1));
            }
        }
        Ok(false)
    }

    /// Makes this block the current one. On an error the cursor stands on nothing.
    fn enter(&mut self, place: BlockPlace) -> Result<&DataBlock> {
        self.block = None;
        let block = self.read(place)?;
        self.readahead.visited(place);
        self.number = place.number;
        self.bundle = NO_BUNDLE;
        self.within = self.part_within(block.block());
        Ok(self.block.insert(block).block())
    }

    fn read(&mut self, place: BlockPlace) -> Result<Arc<Cached<DataBlock>>> {
        let table: &Table = &self.table;
        let readahead = &mut self.readahead;
        if self.access == Access::Sequential {
            return Ok(Arc::new(Cached::new(readahead.read(table.source(), place)?)));
        }
        table.data().get_or_read(place.number, || {
            let block = readahead.read(table.source(), place)?;
            let bytes = block.memory_bytes();
            Ok((block, bytes))
        })
    }

    /// Which entries of a block lie within the bounds.
    fn part_within(&self, block: &DataBlock) -> Range<usize> {
        let before = |bound: &[u8]| block.lower_bound(bound, Ordinal::FIRST);
        let start = if block.compare_key(0, &self.lower).is_ge() { 0 } else { before(&self.lower) };
        let end = match &self.upper {
            Some(upper) if block.compare_key(block.len() - 1, upper).is_ge() => before(upper),
            _ => block.len(),
        };
        start..end.max(start)
    }

    /// Puts the key of the entry together.
    #[inline]
    fn assemble(&mut self) {
        let Some(block) = &self.block else { return };
        let block = block.block();
        let bundle = block.bundle(self.index);
        if bundle != self.bundle {
            let prefix = block.prefix(bundle);
            self.key.clear();
            self.key.extend_from_slice(prefix);
            self.bundle = bundle;
            self.prefix_bytes = prefix.len();
        }
        self.key.truncate(self.prefix_bytes);
        self.key.extend_from_slice(block.suffix(self.index));
    }

    /// See [`IndexBlock::find`].
    fn locate(&mut self, key: &[u8], target: Ordinal) -> Result<Option<BlockPlace>> {
        let table: &Table = &self.table;
        match table.index() {
            Index::Empty => Ok(None),
            Index::Whole(index) => Ok(Some(index.place(index.find(key, target)))),
            Index::Cut(top) => {
                let piece = Self::load_piece(table, &mut self.piece, top, top.find(key, target))?;
                Ok(Some(piece.place(piece.find(key, target))))
            }
        }
    }

    /// Where data block `number` is; `None` when there is none. It must be next to the current one, or the last.
    fn place(&mut self, number: Option<u32>) -> Result<Option<BlockPlace>> {
        let table: &Table = &self.table;
        let blocks = table.properties().data_blocks;
        let Some(number) = number.filter(|&number| number < blocks) else { return Ok(None) };
        let top = match table.index() {
            Index::Empty => return Ok(None),
            Index::Whole(index) => return Ok(Some(index.place(number as usize))),
            Index::Cut(top) => top,
        };
        let at = match &self.piece {
            Some((at, piece)) if number < piece.block().first() => at.saturating_sub(1),
            Some((at, piece)) if number >= piece.block().after() => at + 1,
            Some((at, _)) => *at,
            None => top.len() - 1,
        };
        let at = at.min(top.len() - 1);
        let piece = Self::load_piece(table, &mut self.piece, top, at)?;
        if (piece.first()..piece.after()).contains(&number) {
            return Ok(Some(piece.place((number - piece.first()) as usize)));
        }
        let offset = top.place(at).offset;
        Err(table.source().corruption(offset, format!("data block {number} is not in the index")))
    }

    fn last_place(&mut self) -> Result<Option<BlockPlace>> {
        let last = self.table.properties().data_blocks.checked_sub(1);
        self.piece = None;
        self.place(last)
    }

    /// Makes piece `at` the current one.
    fn load_piece<'a>(
        table: &Table,
        current: &'a mut Option<(usize, Arc<Cached<IndexBlock>>)>,
        top: &IndexBlock,
        at: usize,
    ) -> Result<&'a IndexBlock> {
        let piece = match current.take() {
            Some((number, piece)) if number == at => piece,
            _ => table.index_piece(top.place(at))?,
        };
        Ok(current.insert((at, piece)).1.block())
    }
}
