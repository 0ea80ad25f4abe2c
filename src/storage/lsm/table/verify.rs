//! Reads every byte of a table, and checks what lookups rely on but do not check themselves: the order of entries, that
//! separators separate, that the filter has every key, that the properties are true. For operators, backups and tests;
//! reads past the cache.

use super::block::{DataBlock, Found};
use super::filter::FilterPiece;
use super::format::{Damage, SEAL_BYTES};
use super::index::{BlockPlace, IndexBlock};
use super::properties::Properties;
use super::range_deletions::RangeDeletions;
use super::reader::{Index, Table};
use super::source::{Access, Readahead};
use crate::storage::Result;
use crate::storage::lsm::key::{KeyHash, Ordinal};

impl Table {
    /// See the [module](self). The first damage found is the error.
    pub(crate) fn verify(&self) -> Result<()> {
        let (source, footer) = (self.source(), *self.source().footer());
        source.check_footer()?;
        let payload = source.read(footer.properties, footer.size - 64)?;
        let wrong = |damage: Damage| source.corruption(footer.properties, damage);
        if Properties::decode(&payload).map_err(wrong)? != *self.properties() {
            return Err(wrong("the properties are not what they were when opened".to_owned()));
        }
        let range_deletions = self.verify_range_deletions()?;
        let mut walk = Walk::new(self, self.read_filter()?);
        self.verify_index(&mut walk)?;
        walk.seen.add_range_deletions(&range_deletions);
        let (seen, stated) = (walk.seen, self.properties());
        if seen == *stated {
            return Ok(());
        }
        Err(wrong(format!("the properties are not true: they say {stated:?}, found {seen:?}")))
    }

    fn verify_range_deletions(&self) -> Result<RangeDeletions> {
        let (source, footer) = (self.source(), self.source().footer());
        let (start, end) = (footer.range_deletions, footer.index);
        if start == end {
            return Ok(RangeDeletions::default());
        }
        let payload = source.read(start, end)?;
        RangeDeletions::decode(&payload).map_err(|damage| source.corruption(start, damage))
    }

    fn read_filter(&self) -> Result<Vec<FilterPiece>> {
        let source = self.source();
        let shape = self.properties().filter;
        let mut start = source.footer().filter;
        let mut pieces = Vec::new();
        for number in 0..shape.pieces() {
            let bytes = u32::try_from(shape.piece_bytes(number) + SEAL_BYTES);
            let end = start + bytes.expect("a piece is far smaller than 4 GiB");
            let piece = FilterPiece::parse(shape, number, source.read(start, end)?)
                .map_err(|damage| source.corruption(start, damage))?;
            pieces.push(piece);
            start = end;
        }
        Ok(pieces)
    }

    fn verify_index(&self, walk: &mut Walk<'_>) -> Result<()> {
        let source = self.source();
        let read = |start: u32, end: u32| {
            IndexBlock::parse(source.read(start, end)?)
                .map_err(|damage| source.corruption(start, damage))
        };
        let top_start = self.properties().index_top;
        let top_end = source.footer().properties;
        match self.index() {
            Index::Empty => Ok(()),
            Index::Whole(_) => walk.add_blocks(&read(top_start, top_end)?, top_start),
            Index::Cut(_) => {
                let top = read(top_start, top_end)?;
                for number in 0..top.len() {
                    let BlockPlace { offset, bytes, .. } = top.place(number);
                    let piece = read(offset, offset + bytes)?;
                    if piece.separator(0) != top.separator(number) {
                        return Err(source.corruption(offset, "the top of the index disagrees"));
                    }
                    walk.add_blocks(&piece, offset)?;
                    walk.seen.index_pieces += 1;
                }
                Ok(())
            }
        }
    }
}

/// One pass over the data blocks in order.
struct Walk<'a> {
    table: &'a Table,
    filter: Vec<FilterPiece>,
    readahead: Readahead,
    /// What the properties should be.
    seen: Properties,
    last: Option<(Vec<u8>, Ordinal)>,
    /// Where the next data block must begin.
    position: u32,
}

impl<'a> Walk<'a> {
    fn new(table: &'a Table, filter: Vec<FilterPiece>) -> Self {
        let stated = table.properties();
        // What is not found by walking is taken as stated.
        let seen = Properties {
            dense_blocks: stated.dense_blocks,
            filter: stated.filter,
            index_top: stated.index_top,
            ..Properties::empty()
        };
        let readahead = Readahead::new(Access::Sequential);
        Self { table, filter, readahead, seen, last: None, position: 0 }
    }

    fn add_blocks(&mut self, index: &IndexBlock, index_offset: u32) -> Result<()> {
        let source = self.table.source();
        for number in 0..index.len() {
            let place = index.place(number);
            if place.offset != self.position || place.number != self.seen.data_blocks {
                let damage = format!("data block {} is not where it should be", place.number);
                return Err(source.corruption(index_offset, damage));
            }
            let end = place.offset.checked_add(place.bytes);
            let Some(end) = end.filter(|&end| end <= source.footer().filter) else {
                return Err(source.corruption(index_offset, "the index leads out of the data"));
            };
            let block = self.readahead.read(source, place)?;
            self.readahead.visited(place);
            let corruption = |damage| source.corruption(place.offset, damage);
            self.check_separator(&block, &index.separator(number)).map_err(corruption)?;
            for entry in 0..block.len() {
                self.add_entry(&block, entry).map_err(corruption)?;
            }
            self.seen.data_blocks += 1;
            self.position = end;
        }
        Ok(())
    }

    fn check_separator(
        &self,
        block: &DataBlock,
        separator: &(Vec<u8>, Ordinal),
    ) -> Result<(), Damage> {
        let after_last = self.last.as_ref().is_none_or(|last| last < separator);
        if after_last && block.compare(0, &separator.0, separator.1).is_ge() {
            return Ok(());
        }
        Err("the separator of the block does not separate".to_owned())
    }

    fn add_entry(&mut self, block: &DataBlock, index: usize) -> Result<(), Damage> {
        let (prefix, suffix) = block.key(index);
        let key = [prefix, suffix].concat();
        let entry = block.entry(index, &key);
        let place = (key.clone(), entry.ordinal());
        if self.last.as_ref().is_some_and(|last| *last >= place) {
            return Err(format!("entry {index} is not after the one before"));
        }
        let hash = KeyHash::of(&key);
        let first_of_key = self.last.as_ref().is_none_or(|(last, _)| *last != key);
        // A block must find its own entries.
        let found = block.find(&key, hash, entry.ordinal());
        if found != Found::At(index) {
            return Err(format!("entry {index} is not found by its key"));
        }
        let shape = self.seen.filter;
        if shape.lines > 0 {
            let (piece, line) = shape.place(hash);
            if !self.filter[piece as usize].may_contain(line, hash, shape.probes) {
                return Err(format!("entry {index} is not in the filter"));
            }
        }
        self.seen.add_entry(&entry, first_of_key);
        self.last = Some(place);
        Ok(())
    }
}
