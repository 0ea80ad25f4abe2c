//! A skiplist of entries in the order of internal keys: one writer at a time, any number of readers, no lock for them.
//!
//! | node | bytes | |
//! |---|---|---|
//! | head | 8 | eight bytes of the user key as a number: decides most comparisons |
//! | ordinal | 8 | |
//! | expiry | 8 | milliseconds; only of a PutTtl |
//! | lengths | 8 | of the value (4), of the key (2), of the tower (2) |
//! | tower | 16 x height | at each level the next node, and its head |
//! | key, value | * | |
//!
//! What costs time in a large list is neither a step nor a comparison but the load of a node that no cache has. So the head
//! of the next node stands beside the pointer to it: only a step to a node loads it, not the look that goes down a level.
//! Heads leave out what most keys begin with ([`Heads`]).
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
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering as Memory};

use parking_lot::Mutex;

use super::arena::Arena;
use super::index::{Found, Index};
use crate::storage::lsm::key::{InternalEntry, KeyHash, Kind, Ordinal, common_prefix};
use crate::util::time::Timestamp;

/// Levels of the list. A quarter of the nodes of a level are in the next one, so that this suffices for 16 million.
const HEIGHT_MAX: usize = 12;

/// One node in this many reaches the next level; a power of two.
const BRANCHING: u64 = 4;

/// Older versions of a key that are stepped over one by one before the list is searched for the right one.
const VERSION_STEPS: usize = 8;

/// Keys of a sample that tells what most keys begin with.
const SAMPLE_KEYS: usize = 16;

#[repr(C)]
struct Header {
    head: u64,
    ordinal: u64,
    expires_at: u64,
    value_bytes: u32,
    key_bytes: u16,
    height: u16,
}

/// One level of a tower.
///
/// The writer stores `next`, then `head`; readers load them in the other order. So a reader may find the head of a node
/// beside a newer one, which lies before it, but never the other way round.
#[repr(C)]
struct Link {
    next: AtomicPtr<Header>,
    /// That of `next`; the largest when there is none.
    head: AtomicU64,
}

impl Link {
    /// Nothing follows.
    const fn end() -> Self {
        Self { next: AtomicPtr::new(ptr::null_mut()), head: AtomicU64::new(u64::MAX) }
    }

    #[inline]
    fn next(&self) -> Option<Node> {
        Node::from_pointer(self.next.load(Memory::Acquire))
    }
}

/// A node of a list, alive as long as the list.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Node(*const Header);

/// Heads of keys: eight bytes as a number that orders as the keys do, as far as it goes.
///
/// Most keys of a memtable begin alike, and like those of the memtable before: these bytes are left out. A key that
/// begins otherwise has the least or the greatest head, by where it stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Heads {
    shared: Box<[u8]>,
}

impl Heads {
    #[inline]
    fn of(&self, key: &[u8]) -> u64 {
        match key.strip_prefix(&*self.shared) {
            Some(rest) => prefix_of(rest),
            None if key < &*self.shared => 0,
            None => u64::MAX,
        }
    }
}

/// See the [module](self).
pub(super) struct List {
    heads: Heads,
    /// Where each level begins.
    start: [Link; HEIGHT_MAX],
    index: Index,
    writer: Mutex<Writer>,
}

struct Writer {
    arena: Arena,
    /// At each level the last node not after the one inserted last; `None`: the beginning.
    splice: [Option<Node>; HEIGHT_MAX],
    random: u64,
}

/// What an insertion has made of a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inserted<'a> {
    /// Memory that the list has taken from the allocator, in bytes.
    pub(super) allocated_bytes: usize,
    /// Memory of its nodes, in bytes.
    pub(super) used_bytes: usize,
    /// The entry of the same key that was the newest before, if the index knows it: what is counted by it is an
    /// estimate.
    pub(super) replaced: Option<InternalEntry<'a>>,
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

    fn tower(&self, level: usize) -> &Link {
        debug_assert!(level < usize::from(self.header().height));
        // SAFETY: the tower follows the header, in the same allocation, and is at least as high as the level that the
        // node was reached at.
        unsafe { &*self.0.add(1).cast::<Link>().add(level) }
    }

    fn bytes(&self, skip: usize, length: usize) -> &[u8] {
        let height = usize::from(self.header().height);
        // SAFETY: key and value follow the tower, in the same allocation, and were written before the node was linked.
        unsafe {
            let start = self.0.add(1).cast::<Link>().add(height).cast::<u8>();
            std::slice::from_raw_parts(start.add(skip), length)
        }
    }

    fn key(&self) -> &[u8] {
        self.bytes(0, usize::from(self.header().key_bytes))
    }

    pub(super) fn ordinal(&self) -> Ordinal {
        Ordinal::from_u64(self.header().ordinal)
    }

    #[inline]
    fn compare(&self, target: &Target<'_>) -> Ordering {
        self.header()
            .head
            .cmp(&target.head)
            .then_with(|| self.key().cmp(target.key))
            .then_with(|| self.ordinal().cmp(&target.ordinal))
    }

    /// Its place in memory, and what may be reached from there.
    pub(super) const fn address(&self) -> *mut u8 {
        self.0.cast_mut().cast()
    }

    /// # Safety
    ///
    /// `address` is that of a node of a list that is alive as long as the node is used.
    pub(super) const unsafe fn from_address(address: *mut u8) -> Self {
        Self(address.cast())
    }

    fn from_pointer(pointer: *mut Header) -> Option<Self> {
        (!pointer.is_null()).then_some(Self(pointer))
    }
}

/// What is looked for in a list.
struct Target<'a> {
    head: u64,
    key: &'a [u8],
    ordinal: Ordinal,
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
    /// An empty one, with heads of the given kind.
    pub(super) fn new(heads: Heads) -> Self {
        let writer = Writer {
            arena: Arena::default(),
            splice: [None; HEIGHT_MAX],
            random: 0x9e37_79b9_7f4a_7c15,
        };
        let start = [const { Link::end() }; HEIGHT_MAX];
        Self { heads, start, index: Index::new(), writer: Mutex::new(writer) }
    }

    /// Inserts an entry; no entry of the list may have the same key and seqno, nor the same key and a later one. `hash`
    /// is that of its key.
    pub(super) fn insert(&self, entry: &InternalEntry<'_>, hash: KeyHash) -> Inserted<'_> {
        let mut writer = self.writer.lock();
        let writer = &mut *writer;
        let target = self.target(entry.key, entry.ordinal());
        self.find_splice(&mut writer.splice, &target);
        let height = writer.random_height();
        let node = make_node(&mut writer.arena, target.head, entry, height);
        for level in 0..height {
            let before = self.link(writer.splice[level], level);
            let link = node.tower(level);
            link.next.store(before.next.load(Memory::Relaxed), Memory::Relaxed);
            link.head.store(before.head.load(Memory::Relaxed), Memory::Relaxed);
            // Release: whoever loads this link sees the node as it was written.
            before.next.store(node.0.cast_mut(), Memory::Release);
            // Release: whoever loads the head sees the pointer, or a later one.
            before.head.store(target.head, Memory::Release);
            writer.splice[level] = Some(node);
        }
        let is_key = |other: Node| other.key() == entry.key;
        let replaced = self.index.insert(node, hash, is_key, |other| KeyHash::of(other.key()));
        let arena = &writer.arena;
        Inserted {
            allocated_bytes: arena.bytes() + self.index.bytes(),
            used_bytes: arena.used_bytes(),
            replaced: replaced.map(|replaced| self.entry(replaced)),
        }
    }

    /// The first node of `key` at or after `ordinal`. `hash` is that of the key.
    #[inline]
    pub(super) fn find(&self, key: &[u8], hash: KeyHash, ordinal: Ordinal) -> Option<Node> {
        match self.index.find(hash, |node| node.key() == key) {
            Found::Nothing => None,
            Found::At(newest) if newest.ordinal() >= ordinal => Some(newest),
            Found::At(newest) => self.find_older(newest, key, ordinal),
            Found::Unknown => self.lower_bound(key, ordinal).filter(|node| node.key() == key),
        }
    }

    #[cold]
    fn find_older(&self, mut newer: Node, key: &[u8], ordinal: Ordinal) -> Option<Node> {
        for _ in 0..VERSION_STEPS {
            let older = self.after(newer).filter(|node| node.key() == key)?;
            if older.ordinal() >= ordinal {
                return Some(older);
            }
            newer = older;
        }
        self.lower_bound(key, ordinal).filter(|node| node.key() == key)
    }

    /// The first node at or after (`key`, `ordinal`).
    #[inline]
    pub(super) fn lower_bound(&self, key: &[u8], ordinal: Ordinal) -> Option<Node> {
        let target = self.target(key, ordinal);
        let mut before = None;
        for level in (0..HEIGHT_MAX).rev() {
            before = self.before_on(level, before, &target);
        }
        // What follows by now may have been inserted since, and then it may come before the target.
        loop {
            let next = self.link(before, 0).next()?;
            if next.compare(&target).is_ge() {
                return Some(next);
            }
            before = Some(next);
        }
    }

    /// The last node before (`key`, `ordinal`).
    pub(super) fn last_before_key(&self, key: &[u8], ordinal: Ordinal) -> Option<Node> {
        let target = self.target(key, ordinal);
        let mut before = None;
        for level in (0..HEIGHT_MAX).rev() {
            before = self.before_on(level, before, &target);
        }
        before
    }

    /// Heads that suit keys like those in this list: without what the middle half of them begins with.
    pub(super) fn suited_heads(&self) -> Heads {
        for level in (0..HEIGHT_MAX).rev() {
            let nodes =
                std::iter::successors(self.start[level].next(), |node| node.tower(level).next());
            let keys: Vec<_> = nodes.collect();
            if keys.len() >= SAMPLE_KEYS {
                let (early, late) = (keys[keys.len() / 4].key(), keys[keys.len() * 3 / 4].key());
                return Heads { shared: early[..common_prefix(early, late)].into() };
            }
        }
        Heads::default()
    }

    /// The last node.
    pub(super) fn last(&self) -> Option<Node> {
        let mut last = None;
        for level in (0..HEIGHT_MAX).rev() {
            while let Some(next) = self.link(last, level).next() {
                last = Some(next);
            }
        }
        last
    }

    /// The node after `node`.
    #[expect(clippy::unused_self, reason = "its memory lives as long as this borrow")]
    pub(super) fn after(&self, node: Node) -> Option<Node> {
        node.tower(0).next()
    }

    /// The node before `node`.
    pub(super) fn before(&self, node: Node) -> Option<Node> {
        self.last_before_key(node.key(), node.ordinal())
    }

    /// The user key of a node of this list.
    #[inline]
    #[expect(clippy::unused_self, reason = "its memory lives as long as this borrow")]
    pub(super) fn key(&self, node: Node) -> &[u8] {
        // SAFETY: `node` is one of this list, whose memory lives as long as the borrow of `self`.
        unsafe { &*ptr::from_ref(node.key()) }
    }

    /// Whether two nodes of this list have the same user key.
    #[inline]
    #[expect(clippy::unused_self, reason = "its memory lives as long as this borrow")]
    pub(super) fn is_same_key(&self, a: Node, b: Node) -> bool {
        a.header().head == b.header().head && a.key() == b.key()
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

    #[inline]
    fn target<'a>(&self, key: &'a [u8], ordinal: Ordinal) -> Target<'a> {
        Target { head: self.heads.of(key), key, ordinal }
    }

    #[inline]
    fn link(&self, node: Option<Node>, level: usize) -> &Link {
        match node {
            None => &self.start[level],
            // SAFETY: the node is one of this list and lives as long as `self`.
            Some(node) => unsafe { &*ptr::from_ref(node.tower(level)) },
        }
    }

    /// The node behind `link`, when it comes before the target.
    #[inline]
    fn step(link: &Link, target: &Target<'_>) -> Option<Node> {
        // Before `next`, see `Link`.
        match link.head.load(Memory::Acquire).cmp(&target.head) {
            Ordering::Less => link.next(),
            Ordering::Equal => link.next().filter(|next| next.compare(target).is_lt()),
            Ordering::Greater => None,
        }
    }

    /// The last node of a level before the target, from `before` on.
    #[inline]
    fn before_on(
        &self,
        level: usize,
        mut before: Option<Node>,
        target: &Target<'_>,
    ) -> Option<Node> {
        while let Some(next) = Self::step(self.link(before, level), target) {
            before = Some(next);
        }
        before
    }

    /// Makes the splice bracket the target. Where it does at one level, it does at all above: the nodes of the splice
    /// are in order from the top down, and their successors in the reverse order.
    fn find_splice(&self, splice: &mut [Option<Node>; HEIGHT_MAX], target: &Target<'_>) {
        let brackets = |level: usize, before: Option<Node>| {
            before.is_none_or(|node| node.compare(target).is_lt())
                && Self::step(self.link(before, level), target).is_none()
        };
        let good = (0..HEIGHT_MAX).find(|&level| brackets(level, splice[level]));
        let (below, mut before) = match good {
            Some(level) => (level, splice[level]),
            None => (HEIGHT_MAX, None),
        };
        for level in (0..below).rev() {
            before = self.before_on(level, before, target);
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

fn make_node(arena: &mut Arena, head: u64, entry: &InternalEntry<'_>, height: usize) -> Node {
    let (key, value) = (entry.key, entry.value);
    let tower_bytes = height * size_of::<Link>();
    let start = arena.allocate(size_of::<Header>() + tower_bytes + key.len() + value.len());
    let header = Header {
        head,
        ordinal: entry.ordinal().as_u64(),
        expires_at: entry.expires_at.map_or(0, Timestamp::as_millis),
        value_bytes: u32::try_from(value.len()).expect("values are limited far below 4 GiB"),
        key_bytes: u16::try_from(key.len()).expect("keys are limited far below 64 KiB"),
        height: u16::try_from(height).expect("at most the largest height"),
    };
    #[expect(clippy::cast_ptr_alignment, reason = "the arena aligns to eight bytes")]
    let node = start.cast::<Header>();
    // SAFETY: the arena gave out as many bytes as header, tower, key and value take, aligned for the header and the
    // links, to nobody else.
    unsafe {
        node.write(header);
        let tower = node.add(1).cast::<Link>();
        for level in 0..height {
            tower.add(level).write(Link::end());
        }
        let bytes = tower.add(height).cast::<u8>();
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
