//! One page over many shards: a merge of one scan for each shard that is here, and a merge of the pages of several nodes.
//!
//! Every scan is of the moment at which the page began it, so that each shard's part of a page is one moment. Nothing is kept
//! between pages: a page continues after the last key of the one before.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::query::{PageLimits, Query};
use crate::error::{Error, Reason, Result};
use crate::shard::{DocumentScan, ShardReader, key_text};
use crate::storage::Direction;
use crate::types::{Key, Value, Version};

/// One key of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: Key,
    /// The value; `None` when only keys were asked for.
    pub value: Option<Value>,
    /// The version of the write that stored it.
    pub version: Version,
    /// Whole seconds left until it expires, rounded up; `None`: it does not expire.
    pub ttl_seconds: Option<u32>,
}

/// Some items of a range, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The items.
    pub items: Vec<Item>,
    /// Whether more follow after the last one.
    pub more: bool,
}

/// The first page of `query`.
pub(super) fn page(readers: &[ShardReader], query: &Query, limits: PageLimits) -> Result<Page> {
    let mut page = Page { items: Vec::new(), more: false };
    if query.range().is_empty() {
        return Ok(page);
    }
    let mut sources = BinaryHeap::with_capacity(readers.len());
    for reader in readers {
        let scan = reader.scan(query.range(), query.direction())?;
        sources.extend(Source::open(scan, query)?);
    }
    let mut bytes = 0;
    while let Some(mut source) = sources.peek_mut() {
        bytes += source.key.len() + source.value_bytes;
        let full = page.items.len() >= limits.items || bytes > limits.bytes;
        if full && !page.items.is_empty() {
            page.more = true;
            break;
        }
        page.items.push(source.item()?);
        if !source.advance()? {
            PeekMut::pop(source);
        }
    }
    Ok(page)
}

/// The first page over all that `pages` are of, which have no key in common.
///
/// A page that has more to follow says nothing about what comes after its last key, so the joined one ends there at the latest.
pub(super) fn join(mut pages: Vec<Page>, direction: Direction, limits: PageLimits) -> Page {
    if pages.len() == 1
        && let Some(page) = pages.pop()
    {
        return page;
    }
    let order = |a: &Key, b: &Key| match direction {
        Direction::Forward => a.cmp(b),
        Direction::Reverse => b.cmp(a),
    };
    let ends = pages.iter().filter(|page| page.more).filter_map(|page| page.items.last());
    let end = ends.map(|item| item.key.clone()).min_by(order);
    // Each page is in order already, which a stable sort makes use of.
    let mut items: Vec<_> = pages.into_iter().flat_map(|page| page.items).collect();
    items.sort_by(|a, b| order(&a.key, &b.key));
    let known = end.as_ref().map_or(items.len(), |end| {
        items.partition_point(|item| order(&item.key, end) != Ordering::Greater)
    });
    let mut bytes = 0;
    let fit = items.iter().take(limits.items).take_while(|item| {
        bytes += item.key.as_bytes().len();
        bytes += item.value.as_ref().map_or(0, |value| value.bytes().len());
        bytes <= limits.bytes
    });
    let fit = fit.count().max(1).min(known);
    let more = end.is_some() || fit < items.len();
    items.truncate(fit);
    Page { items, more }
}

/// A shard's scan with the item it stands on.
struct Source<'a> {
    scan: DocumentScan<'a>,
    direction: Direction,
    keys_only: bool,
    key: Vec<u8>,
    value: Option<Value>,
    value_bytes: usize,
    version: Version,
    ttl_seconds: Option<u32>,
}

impl<'a> Source<'a> {
    /// Stands on the first item; `None` when there is none.
    fn open(scan: DocumentScan<'a>, query: &Query) -> Result<Option<Self>> {
        let mut source = Self {
            scan,
            direction: query.direction(),
            keys_only: query.keys_only(),
            key: Vec::new(),
            value: None,
            value_bytes: 0,
            version: Version::ABSENT,
            ttl_seconds: None,
        };
        Ok(source.advance()?.then_some(source))
    }

    fn advance(&mut self) -> Result<bool> {
        let Some(document) = self.scan.next()? else { return Ok(false) };
        self.key.clear();
        self.key.extend_from_slice(document.key);
        self.value_bytes = if self.keys_only { 0 } else { document.value_bytes() };
        self.value = (!self.keys_only).then(|| document.value());
        self.version = document.version();
        self.ttl_seconds = document.ttl_seconds;
        Ok(true)
    }

    fn item(&mut self) -> Result<Item> {
        let key = key_text(&self.key)
            .ok_or_else(|| Error::new(Reason::Corruption, "a stored key is not a key"))?;
        let Self { version, ttl_seconds, .. } = *self;
        Ok(Item { key, value: self.value.take(), version, ttl_seconds })
    }
}

/// The greatest in the heap is the next in order. Keys differ: a key lives in one shard.
impl Ord for Source<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match self.direction {
            Direction::Forward => other.key.cmp(&self.key),
            Direction::Reverse => self.key.cmp(&other.key),
        }
    }
}

impl PartialOrd for Source<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Source<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Source<'_> {}
