//! A cursor over a memtable, forwards and backwards, within bounds: over every entry, published or not, or over what a
//! read at one seqno sees, the newest version of each key.
//!
//! Callers: scans, who want the latter, and flushes. A key that is written again and again has thousands of versions in
//! one memtable, and stepping over them one by one costs a load from memory for each: after a few, the list is searched
//! for what follows them.

use std::ops::Deref;

use super::Memtable;
use super::list::{List, Node};
use crate::storage::lsm::key::{InternalEntry, KeyHash, Ordinal};
use crate::storage::{KeyRange, Seqno};

/// Versions of a key that are stepped over one by one before the list is searched for what follows.
const VERSION_STEPS: usize = 8;

/// See the [module](self). `T` is `Arc<Memtable>` or a reference.
#[derive(Debug)]
pub(in crate::storage::lsm) struct MemtableCursor<T> {
    memtable: T,
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
    /// Whose view it has of each key; `None`: every version.
    at: Option<Seqno>,
    node: Option<Node>,
}

impl<T: Deref<Target = Memtable>> MemtableCursor<T> {
    /// Over all entries of the keys of `range`; stands on no entry yet.
    pub(in crate::storage::lsm) fn new(memtable: T, range: KeyRange<'_>) -> Self {
        let upper = range.end.map(|end| end.max(range.start).to_vec());
        Self { memtable, lower: range.start.to_vec(), upper, at: None, node: None }
    }

    /// Only over the newest entry of each key that a read at `at` sees; of all for `None`.
    pub(in crate::storage::lsm) fn seen_at(self, at: Option<Seqno>) -> Self {
        Self { at, ..self }
    }

    /// The entry it stands on.
    #[inline]
    pub(in crate::storage::lsm) fn entry(&self) -> Option<InternalEntry<'_>> {
        self.node.map(|node| self.list().entry(node))
    }

    /// Key and ordinal of that entry.
    #[inline]
    pub(in crate::storage::lsm) fn key(&self) -> Option<(&[u8], Ordinal)> {
        self.node.map(|node| (self.list().key(node), node.ordinal()))
    }

    /// To the first entry within bounds.
    pub(in crate::storage::lsm) fn seek_to_first(&mut self) -> bool {
        let node = self.list().lower_bound(&self.lower, Ordinal::FIRST);
        self.stand_forward(node)
    }

    /// To the last entry within bounds.
    pub(in crate::storage::lsm) fn seek_to_last(&mut self) -> bool {
        let node = match &self.upper {
            Some(upper) => self.list().last_before_key(upper, Ordinal::FIRST),
            None => self.list().last(),
        };
        self.stand_back(node)
    }

    /// To the next entry.
    #[inline]
    pub(in crate::storage::lsm) fn next(&mut self) -> bool {
        let Some(node) = self.node else { return false };
        let next = self.list().after(node);
        match next {
            Some(next) if self.at.is_some() && self.list().is_same_key(node, next) => {
                self.stand_forward(self.after_key(next))
            }
            next => self.stand_forward(next),
        }
    }

    /// To the entry before.
    pub(in crate::storage::lsm) fn prev(&mut self) -> bool {
        let Some(node) = self.node else { return false };
        let before = match self.at {
            None => self.list().before(node),
            Some(_) => self.list().last_before_key(self.list().key(node), Ordinal::FIRST),
        };
        self.stand_back(before)
    }

    /// On `node`, or the first entry after it that is seen.
    #[inline]
    fn stand_forward(&mut self, node: Option<Node>) -> bool {
        self.node = match (node, self.at) {
            (Some(node), Some(at)) if node.ordinal().seqno() > at => self.first_seen(node, at),
            (node, _) => node,
        };
        let is_beyond = |node: Node, upper: &[u8]| self.list().key(node) >= upper;
        if let (Some(node), Some(upper)) = (self.node, &self.upper)
            && is_beyond(node, upper)
        {
            self.node = None;
        }
        self.node.is_some()
    }

    /// The first entry from `node` on, which is too new, that a read at `at` sees.
    #[cold]
    fn first_seen(&self, node: Node, at: Seqno) -> Option<Node> {
        let list = self.list();
        let mut next = Some(node);
        let mut steps = 0;
        while let Some(node) = next.filter(|node| node.ordinal().seqno() > at) {
            next = if steps < VERSION_STEPS {
                list.after(node)
            } else {
                list.lower_bound(list.key(node), Ordinal::seek(at))
            };
            steps += 1;
        }
        next
    }

    /// The first entry of the key after that of `node`.
    fn after_key(&self, node: Node) -> Option<Node> {
        let list = self.list();
        let mut next = Some(node);
        for _ in 0..VERSION_STEPS {
            next = next.and_then(|node| list.after(node));
            if next.is_none_or(|next| !list.is_same_key(node, next)) {
                return next;
            }
        }
        list.lower_bound(list.key(node), Ordinal::LAST)
    }

    /// On `node`, or the last entry before it that is seen.
    fn stand_back(&mut self, node: Option<Node>) -> bool {
        self.node = node;
        while let (Some(oldest), Some(at)) = (self.node, self.at) {
            let list = self.list();
            let key = list.key(oldest);
            // Whoever steps back comes to the oldest version first.
            self.node = if oldest.ordinal().seqno() <= at {
                list.find(key, KeyHash::of(key), Ordinal::seek(at))
            } else {
                list.last_before_key(key, Ordinal::FIRST)
            };
            if self.node.is_none_or(|node| self.list().is_same_key(oldest, node)) {
                break;
            }
        }
        if self.node.is_some_and(|node| self.list().key(node) < &self.lower[..]) {
            self.node = None;
        }
        self.node.is_some()
    }

    fn list(&self) -> &List {
        &self.memtable.list
    }
}
