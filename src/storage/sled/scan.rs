//! A scan of one moment: rows of the tree, corrected by the images of the overlay.
//!
//! Rows are taken in chunks, each under the overlay's read lock, so that a long scan holds up no writer for long; between
//! chunks the view that the scan owns keeps its moment readable.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::iter::Peekable;

use sled::IVec;

use super::engine::SledView;
use super::rows;
use super::store::Store;
use super::versions::Image;
use crate::storage::{Direction, EntryRef, KeyRange, Result, Scan};

/// A chunk ends at either limit. They bound how long the lock is held and how much a scan that is given up has read in vain.
const CHUNK_ROWS: usize = 64;
const CHUNK_BYTES: usize = 1024 * 1024;

/// A running scan.
pub(super) struct SledScan {
    view: SledView,
    /// What is still to come, as row keys: narrowed chunk by chunk.
    start: IVec,
    end: IVec,
    direction: Direction,
    chunk: VecDeque<(IVec, IVec)>,
    current: Option<(IVec, IVec)>,
    exhausted: bool,
}

impl SledScan {
    pub(super) fn new(view: SledView, range: KeyRange<'_>, direction: Direction) -> Self {
        Self {
            view,
            start: rows::entry_key(range.start),
            end: rows::entry_end(range.end),
            direction,
            chunk: VecDeque::new(),
            current: None,
            exhausted: range.is_empty(),
        }
    }

    /// Takes the next chunk of rows of the view's moment, hidden entries included.
    fn fill(&mut self) -> Result<()> {
        let core = &*self.view.core;
        let moment = self.view.state.seqno;
        let versions = core.versions.read();
        versions.check(moment)?;
        let tree = core.tree.range(self.start.clone()..self.end.clone());
        let images = versions.images_between(&self.start, &self.end, moment);
        let last = match self.direction {
            Direction::Forward => {
                let merge = Merge::new(&core.store, tree, images, self.direction);
                merge.take_into(&mut self.chunk)?
            }
            Direction::Reverse => {
                let merge = Merge::new(&core.store, tree.rev(), images.rev(), self.direction);
                merge.take_into(&mut self.chunk)?
            }
        };
        match (last, self.direction) {
            (None, _) => self.exhausted = true,
            (Some(last), Direction::Forward) => self.start = [&last, &[0][..]].concat().into(),
            (Some(last), Direction::Reverse) => self.end = last,
        }
        Ok(())
    }

    /// The next entry that the clock does not hide, in `current`.
    fn advance(&mut self) -> Result<bool> {
        loop {
            while let Some((key, row)) = self.chunk.pop_front() {
                let Some(entry) = rows::decode_entry(&key, &row) else {
                    return Err(self.view.core.store.damaged("malformed entry row"));
                };
                if entry.expires_at.is_none_or(|expires_at| expires_at > self.view.state.clock) {
                    self.current = Some((key, row));
                    return Ok(true);
                }
            }
            if self.exhausted {
                return Ok(false);
            }
            self.fill()?;
        }
    }
}

impl Scan for SledScan {
    fn next(&mut self) -> Result<Option<EntryRef<'_>>> {
        match self.advance() {
            Ok(true) => {
                Ok(self.current.as_ref().and_then(|(key, row)| rows::decode_entry(key, row)))
            }
            Ok(false) => Ok(None),
            Err(error) => {
                self.chunk.clear();
                self.exhausted = true;
                Err(error)
            }
        }
    }
}

/// Two runs of rows in the same order, where an image counts more than a row of the tree.
struct Merge<'a, T, I: Iterator> {
    store: &'a Store,
    tree: T,
    images: Peekable<I>,
    direction: Direction,
}

impl<'a, T, I> Merge<'a, T, I>
where
    T: Iterator<Item = sled::Result<(IVec, IVec)>>,
    I: Iterator<Item = (&'a IVec, &'a Image)>,
{
    fn new(store: &'a Store, tree: T, images: I, direction: Direction) -> Self {
        Self { store, tree, images: images.peekable(), direction }
    }

    /// Moves a chunk into `rows`. Returns the key up to which both runs have been looked at, `None` when both have ended.
    fn take_into(mut self, rows: &mut VecDeque<(IVec, IVec)>) -> Result<Option<IVec>> {
        let mut bytes = 0;
        let mut last = None;
        let mut row = self.store.next(&mut self.tree)?;
        for _ in 0..CHUNK_ROWS {
            let order = match (&row, self.images.peek()) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((key, _)), Some((image_key, _))) => compare(key, image_key, self.direction),
            };
            let (key, taken) = if order.is_lt() {
                let (key, value) = row.take().expect("there is a row to take");
                (key, Some(value))
            } else {
                let (key, image) = self.images.next().expect("there is an image to take");
                (key.clone(), image.clone())
            };
            if order.is_le() {
                row = self.store.next(&mut self.tree)?;
            }
            if let Some(value) = taken {
                bytes += key.len() + value.len();
                rows.push_back((key.clone(), value));
            }
            last = Some(key);
            if bytes >= CHUNK_BYTES {
                break;
            }
        }
        Ok(last)
    }
}

fn compare(left: &IVec, right: &IVec, direction: Direction) -> Ordering {
    match direction {
        Direction::Forward => left.cmp(right),
        Direction::Reverse => right.cmp(left),
    }
}
