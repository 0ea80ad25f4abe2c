//! A skiplist of entries in the order of internal keys: one writer at a time, any number of readers, no lock for them.
//!
//! | node | bytes | |
//! |---|---|---|
//! | prefix | 8 | the first eight bytes of the user key as a number, padded with zeros: decides most comparisons |
//! | ordinal | 8 | |
//! | expiry | 8 | milliseconds; only of a PutTtl |
//! | lengths | 8 | of the value (4), of the key (2), of the tower (2) |
//! | tower | 8 x height | the next node at each level |
//! | key, value | * | |
//!
//! Invariants:
//! * A node never changes after it was linked, but for its tower; no node is ever unlinked.
//! * Level `n + 1` is a part of level `n`. A node is linked from level 0 upwards, with release stores, so that whoever
//!   finds it, finds it whole.
//! * The **splice** brackets the node inserted last: at each level, the last node not after it. The next insertion
//!   begins there, so that entries that come in order cost one comparison.

#![expect(
    unsafe_code,
    reason = "nodes are linked by raw pointers into an arena that outlives them"
)]

use std::cmp::Ordering;
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering as Memory};

use parking_lot::Mutex;

use super::arena::Arena;
use crate::storage::lsm::key::{InternalEntry, Kind, Ordinal};
use crate::util::time::Timestamp;

/// Levels of the list. A quarter of the nodes of a level are in the next one, so that this suffices for 16 million.
const HEIGHT_MAX: usize = 12;

/// One node in this many reaches the next level; a power of two.
const BRANCHING: u64 = 4;

#[repr(C)]
struct Header {
    prefix: u64,
    ordinal: u64,
    expires_at: u64,
    value_bytes: u32,
    key_bytes: u16,
    height: u16,
}

/// A node of a list, alive as long as the list.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Node(*const Header);

/// See the [module](self).
pub(super) struct List {
    /// Where each level begins.
    head: [AtomicPtr<Header>; HEIGHT_MAX],
    writer: Mutex<Writer>,
}

struct Writer {
    arena: Arena,
    /// At each level the last node not after the one inserted last; `None`: the beginning.
    splice: [Option<Node>; HEIGHT_MAX],
    random: u64,
}

/// Memory of a list, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListBytes {
    /// Taken from the allocator.
    pub(super) allocated: usize,
    /// Used by nodes.
    pub(super) used: usize,
}

// SAFETY: nodes are immutable but for their towers, which are atomic; they live in the arena of `writer`, which is
// dropped with the list, and every node handed out borrows the list.
unsafe impl Send for List {}
// SAFETY: as above; only the holder of the lock `writer` links nodes.
unsafe impl Sync for List {}
// SAFETY: a node is a shared reference to immutable memory of a list that is `Sync`.
unsafe impl Send for Node {}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what is handed out borrows the node")]
impl Node {
    /// # Safety
    ///
    /// For all functions of a node: it came from a list that is still alive. Only this module makes nodes, and those
    /// it hands out are used together with a borrow of their list.
    fn header(&self) -> &Header {
        // SAFETY: see above; the header was written before the node was linked.
        unsafe { &*self.0 }
    }

    fn tower(&self, level: usize) -> &AtomicPtr<Header> {
        debug_assert!(level < usize::from(self.header().height));
        // SAFETY: the tower follows the header, in the same allocation, and is at least as high as the level that the
        // node was reached at.
        unsafe { &*self.0.add(1).cast::<AtomicPtr<Header>>().add(level) }
    }

    fn bytes(&self, skip: usize, length: usize) -> &[u8] {
        let height = usize::from(self.header().height);
        // SAFETY: key and value follow the tower, in the same allocation, and were written before the node was linked.
        unsafe {
            let start = self.0.add(1).cast::<*mut Header>().add(height).cast::<u8>();
            std::slice::from_raw_parts(start.add(skip), length)
        }
    }

    fn key(&self) -> &[u8] {
        self.bytes(0, usize::from(self.header().key_bytes))
    }

    pub(super) fn ordinal(&self) -> Ordinal {
        Ordinal::from_u64(self.header().ordinal)
    }

    fn compare(&self, prefix: u64, key: &[u8], ordinal: Ordinal) -> Ordering {
        self.header()
            .prefix
            .cmp(&prefix)
            .then_with(|| self.key().cmp(key))
            .then_with(|| self.ordinal().cmp(&ordinal))
    }

    fn from_pointer(pointer: *mut Header) -> Option<Self> {
        (!pointer.is_null()).then_some(Self(pointer))
    }
}

/// The first eight bytes of a key as a number of the same order.
pub(in crate::storage::lsm) fn prefix_of(key: &[u8]) -> u64 {
    if let Some(head) = key.first_chunk() {
        return u64::from_be_bytes(*head);
    }
    let mut head = [0; 8];
    head[..key.len()].copy_from_slice(key);
    u64::from_be_bytes(head)
}

impl List {
    pub(super) fn new() -> Self {
        let writer = Writer {
            arena: Arena::default(),
            splice: [None; HEIGHT_MAX],
            random: 0x9e37_79b9_7f4a_7c15,
        };
        Self {
            head: [const { AtomicPtr::new(ptr::null_mut()) }; HEIGHT_MAX],
            writer: Mutex::new(writer),
        }
    }

    /// Inserts an entry; no entry of the list may have the same key and seqno. Returns what memory the list has now.
    pub(super) fn insert(&self, entry: &InternalEntry<'_>) -> ListBytes {
        let mut writer = self.writer.lock();
        let writer = &mut *writer;
        let (prefix, ordinal) = (prefix_of(entry.key), entry.ordinal());
        self.find_splice(&mut writer.splice, prefix, entry.key, ordinal);
        let height = writer.random_height();
        let node = make_node(&mut writer.arena, prefix, entry, height);
        for level in 0..height {
            let before = self.link(writer.splice[level], level);
            node.tower(level).store(before.load(Memory::Relaxed), Memory::Relaxed);
            // Release: whoever loads this link sees the node as it was written.
            before.store(node.0.cast_mut(), Memory::Release);
            writer.splice[level] = Some(node);
        }
        ListBytes { allocated: writer.arena.bytes(), used: writer.arena.used_bytes() }
    }

    /// The first node at or after (`key`, `ordinal`).
    #[inline]
    pub(super) fn lower_bound(&self, key: &[u8], ordinal: Ordinal) -> Option<Node> {
        let prefix = prefix_of(key);
        let (mut before, mut found) = (None, None);
        for level in (0..HEIGHT_MAX).rev() {
            (before, found) = self.bracket(before, level, prefix, key, ordinal);
        }
        // Not what follows `before` by now: that may be a node inserted since, which comes before the target.
        found
    }

    /// The last node before (`key`, `ordinal`).
    pub(super) fn last_before_key(&self, key: &[u8], ordinal: Ordinal) -> Option<Node> {
        let prefix = prefix_of(key);
        let mut before = None;
        for level in (0..HEIGHT_MAX).rev() {
            (before, _) = self.bracket(before, level, prefix, key, ordinal);
        }
        before
    }

    /// The first node.
    pub(super) fn first(&self) -> Option<Node> {
        self.next(None, 0)
    }

    /// The last node.
    pub(super) fn last(&self) -> Option<Node> {
        let mut last = None;
        for level in (0..HEIGHT_MAX).rev() {
            while let Some(next) = self.next(last, level) {
                last = Some(next);
            }
        }
        last
    }

    /// The node after `node`.
    pub(super) fn after(&self, node: Node) -> Option<Node> {
        self.next(Some(node), 0)
    }

    /// The node before `node`.
    pub(super) fn before(&self, node: Node) -> Option<Node> {
        self.last_before_key(node.key(), node.ordinal())
    }

    /// What is in a node of this list.
    #[expect(clippy::unused_self, reason = "its memory lives as long as this borrow")]
    pub(super) fn entry(&self, node: Node) -> InternalEntry<'_> {
        let header = node.header();
        let (key_bytes, value_bytes) = (usize::from(header.key_bytes), header.value_bytes as usize);
        let ordinal = node.ordinal();
        let kind = ordinal.kind().expect("a node is made of an entry");
        // SAFETY: `node` is one of this list, whose memory lives as long as the borrow of `self`.
        let (key, value) = unsafe {
            let start = node.bytes(0, key_bytes + value_bytes).as_ptr();
            (
                std::slice::from_raw_parts(start, key_bytes),
                std::slice::from_raw_parts(start.add(key_bytes), value_bytes),
            )
        };
        let expires_at = (kind == Kind::PutTtl).then(|| Timestamp::from_millis(header.expires_at));
        InternalEntry { key, seqno: ordinal.seqno(), kind, expires_at, value }
    }

    fn link(&self, node: Option<Node>, level: usize) -> &AtomicPtr<Header> {
        match node {
            None => &self.head[level],
            // SAFETY: the node is one of this list and lives as long as `self`.
            Some(node) => unsafe { &*ptr::from_ref(node.tower(level)) },
        }
    }

    #[inline]
    fn next(&self, node: Option<Node>, level: usize) -> Option<Node> {
        Node::from_pointer(self.link(node, level).load(Memory::Acquire))
    }

    /// From `before` on along `level`: the last node before the target, and the one after it.
    #[inline]
    fn bracket(
        &self,
        mut before: Option<Node>,
        level: usize,
        prefix: u64,
        key: &[u8],
        ordinal: Ordinal,
    ) -> (Option<Node>, Option<Node>) {
        while let Some(next) = self.next(before, level) {
            if next.compare(prefix, key, ordinal).is_ge() {
                return (before, Some(next));
            }
            before = Some(next);
        }
        (before, None)
    }

    /// Makes the splice bracket the target. Where it does at one level, it does at all above: the nodes of the splice
    /// are in order from the top down, and their successors in the reverse order.
    fn find_splice(
        &self,
        splice: &mut [Option<Node>; HEIGHT_MAX],
        prefix: u64,
        key: &[u8],
        ordinal: Ordinal,
    ) {
        let brackets = |level: usize, before: Option<Node>| {
            before.is_none_or(|node| node.compare(prefix, key, ordinal).is_lt())
                && self
                    .next(before, level)
                    .is_none_or(|node| node.compare(prefix, key, ordinal).is_gt())
        };
        let good = (0..HEIGHT_MAX).find(|&level| brackets(level, splice[level]));
        let (below, mut before) = match good {
            Some(level) => (level, splice[level]),
            None => (HEIGHT_MAX, None),
        };
        for level in (0..below).rev() {
            (before, _) = self.bracket(before, level, prefix, key, ordinal);
            splice[level] = before;
        }
    }
}

impl Writer {
    fn random_height(&mut self) -> usize {
        // Xorshift: any bits will do, and a list repeats itself from run to run.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let mut bits = self.random;
        let mut height = 1;
        while height < HEIGHT_MAX && bits.is_multiple_of(BRANCHING) {
            height += 1;
            bits /= BRANCHING;
        }
        height
    }
}

fn make_node(arena: &mut Arena, prefix: u64, entry: &InternalEntry<'_>, height: usize) -> Node {
    let (key, value) = (entry.key, entry.value);
    let tower_bytes = height * size_of::<*mut Header>();
    let start = arena.allocate(size_of::<Header>() + tower_bytes + key.len() + value.len());
    let header = Header {
        prefix,
        ordinal: entry.ordinal().as_u64(),
        expires_at: entry.expires_at.map_or(0, Timestamp::as_millis),
        value_bytes: u32::try_from(value.len()).expect("values are limited far below 4 GiB"),
        key_bytes: u16::try_from(key.len()).expect("keys are limited far below 64 KiB"),
        height: u16::try_from(height).expect("at most the largest height"),
    };
    #[expect(clippy::cast_ptr_alignment, reason = "the arena aligns to eight bytes")]
    let node = start.cast::<Header>();
    // SAFETY: the arena gave out as many bytes as header, tower, key and value take, aligned for the header and the
    // pointers, to nobody else. The tower is all zeros then, which are null pointers: `insert` fills it.
    unsafe {
        node.write(header);
        let tower = start.add(size_of::<Header>());
        ptr::write_bytes(tower, 0, tower_bytes);
        let bytes = tower.add(tower_bytes);
        ptr::copy_nonoverlapping(key.as_ptr(), bytes, key.len());
        ptr::copy_nonoverlapping(value.as_ptr(), bytes.add(key.len()), value.len());
    }
    Node(node)
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List").finish_non_exhaustive()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node").field(&self.0).finish()
    }
}
