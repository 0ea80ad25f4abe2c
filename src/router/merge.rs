//! One page over all shards: a merge of one scan for each shard.
//!
//! Every scan is of the moment at which the page began it, so that each shard's part of a page is one moment. Nothing is kept
//! between pages: a page continues after the last key of the one before.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::query::{PageLimits, Query};
use crate::error::{Error, Reason, Result};
use crate::shard::{DocumentScan, Shard, key_text};
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
pub(super) fn page(shards: &[Shard], query: &Query, limits: PageLimits) -> Result<Page> {
    let mut page = Page { items: Vec::new(), more: false };
    if query.range().is_empty() {
        return Ok(page);
    }
    let readers = shards.iter().map(Shard::reader).collect::<Result<Vec<_>>>()?;
    let mut sources = BinaryHeap::with_capacity(shards.len());
    for reader in &readers {
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
