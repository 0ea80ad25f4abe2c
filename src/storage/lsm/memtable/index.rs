//! Where the newest entry of each key is: a hash table beside the list, so that a point read costs two loads from memory
//! and not one for each step through the list, and a miss one.
//!
//! Open addressing, linear probing, at most three quarters full. A **slot** is a pointer to a node; its upper 16 bits,
//! which no address has, are those of the key's hash, so that a probe follows only the pointer it looks for. A key stays in
//! its slot; a newer entry takes the place of the older one there.
//!
//! The table begins small, because a node has many engines and most may be idle. When it is full, the next
//! **generation**, four times as large, is filled and takes its place; the old ones stay until the memtable goes, for
//! those who read in them, and take a third of the last one together.
//!
//! # Readers beside the writer
//!
//! The writer links a node into the list, then stores it here (release), then publishes the entry. Whoever may see an
//! entry has loaded a moment that was published later, and so finds the entry of its key here, or a newer one. A new
//! generation is switched to before the first entry that only it has is published.
//!
//! # Bounds
//!
//! A probe ends after [`PROBES_MAX`] slots, whatever keys somebody made up. A key that finds no slot among them makes the table grow; where that
//! does not help either, the key is left out, and from then on the table is **partial**: that it has not got a key proves nothing any more, and
//! the list has to be asked.

use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use super::list::Node;
use crate::storage::lsm::key::KeyHash;

/// Slots of the first generation.
const SLOTS_MIN: usize = 64;

/// How many times as large as the one before a generation is.
const GROWTH: usize = 4;

/// More than any memtable needs: the last one has 2^34 slots.
const GENERATIONS: usize = 15;

/// Slots that one lookup may look at. At three quarters full, runs of a few hundred come by chance; in tests runs that are too long come often.
const PROBES_MAX: usize = if cfg!(test) { 8 } else { 1024 };

/// A table with fewer keys than one in so many slots does not grow.
const SPARSE: usize = 16;

/// Bits of an address.
const ADDRESS_BITS: u32 = 48;

type Slot = AtomicPtr<u8>;

/// What a lookup found.
#[derive(Debug)]
pub(super) enum Found {
    /// The newest entry of the key.
    At(Node),
    /// The key has no entry.
    Nothing,
    /// Only the list can tell.
    Unknown,
}

/// See the [module](self). One writer at a time.
#[derive(Debug)]
pub(super) struct Index {
    generations: [OnceLock<Box<[Slot]>>; GENERATIONS],
    // Written by the one writer.
    current: AtomicUsize,
    keys: AtomicUsize,
    bytes: AtomicUsize,
    /// Whether a key was left out.
    partial: AtomicBool,
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            generations: [const { OnceLock::new() }; GENERATIONS],
            current: AtomicUsize::new(0),
            keys: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            partial: AtomicBool::new(false),
        }
    }

    /// The newest node of the key with this hash for which `is_key` holds.
    #[inline]
    pub(super) fn find(&self, hash: KeyHash, is_key: impl Fn(Node) -> bool) -> Found {
        let current = self.current.load(Ordering::Acquire);
        let Some(slots) = self.generations[current].get() else { return Found::Nothing };
        for slot in probe(slots, hash) {
            let tagged = slot.load(Ordering::Acquire);
            if tagged.is_null() {
                // Whoever may see an entry that was left out has loaded a moment that was published after this was set.
                let partial = self.partial.load(Ordering::Relaxed);
                return if partial { Found::Unknown } else { Found::Nothing };
            }
            if is_tagged(tagged, hash) {
                let node = node(tagged);
                if is_key(node) {
                    return Found::At(node);
                }
            }
        }
        Found::Unknown
    }

    /// Makes `node` the newest of its key, for which `is_key` holds, and returns the one that was before. `hash_of` gives
    /// the hash of a node's key.
    pub(super) fn insert(
        &self,
        node: Node,
        hash: KeyHash,
        is_key: impl Fn(Node) -> bool,
        hash_of: impl Fn(Node) -> KeyHash,
    ) -> Option<Node> {
        let slots = self.slots_for_one_more(&hash_of);
        let placed = self.place(slots, node, hash, &is_key).or_else(|| {
            let larger = self.grow(slots, &hash_of)?;
            self.place(larger, node, hash, &is_key)
        });
        placed.unwrap_or_else(|| {
            self.partial.store(true, Ordering::Relaxed);
            None
        })
    }

    /// Puts `node` into the slot of its key, or a free one: the node that was there. `None` when there is no such slot.
    #[expect(clippy::option_option, reason = "the outer one says whether there was a slot")]
    fn place(
        &self,
        slots: &[Slot],
        node: Node,
        hash: KeyHash,
        is_key: impl Fn(Node) -> bool,
    ) -> Option<Option<Node>> {
        for slot in probe(slots, hash) {
            let tagged = slot.load(Ordering::Relaxed);
            let replaced = (!tagged.is_null()).then(|| self::node(tagged));
            if replaced.is_none_or(|other| is_tagged(tagged, hash) && is_key(other)) {
                // Release: whoever loads it sees the node as it was written.
                slot.store(tag(node, hash), Ordering::Release);
                let keys = self.keys.load(Ordering::Relaxed) + usize::from(replaced.is_none());
                self.keys.store(keys, Ordering::Relaxed);
                return Some(replaced);
            }
        }
        None
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The slots in use, after making more where they are nearly full.
    fn slots_for_one_more(&self, hash_of: impl Fn(Node) -> KeyHash) -> &[Slot] {
        let current = self.current.load(Ordering::Relaxed);
        let Some(slots) = self.generations[current].get() else { return self.make(0) };
        let is_full = self.keys.load(Ordering::Relaxed) * 4 >= slots.len() * 3;
        if is_full { self.grow(slots, hash_of).unwrap_or(slots) } else { slots }
    }

    /// Fills the next generation with what is in `slots`, the last one, and switches to it; `None` when there is none, or too few keys for one.
    fn grow(&self, slots: &[Slot], hash_of: impl Fn(Node) -> KeyHash) -> Option<&[Slot]> {
        let current = self.current.load(Ordering::Relaxed);
        // Keys that somebody made up to collide shall not cost more memory than others.
        let sparse = self.keys.load(Ordering::Relaxed) * SPARSE < slots.len();
        if current + 1 == GENERATIONS || sparse {
            return None;
        }
        let larger = self.make(current + 1);
        for slot in slots {
            let tagged = slot.load(Ordering::Relaxed);
            if !tagged.is_null() {
                let hash = hash_of(node(tagged));
                let is_free = |slot: &&Slot| slot.load(Ordering::Relaxed).is_null();
                match probe(larger, hash).find(is_free) {
                    Some(free) => free.store(tagged, Ordering::Relaxed),
                    None => self.partial.store(true, Ordering::Relaxed),
                }
            }
        }
        // Release: with the generation, what is in it, and whether that is all.
        self.current.store(current + 1, Ordering::Release);
        Some(larger)
    }

    fn make(&self, generation: usize) -> &[Slot] {
        self.generations[generation].get_or_init(|| {
            let slots = SLOTS_MIN * GROWTH.pow(u32::try_from(generation).expect("there are few"));
            self.bytes.fetch_add(slots * size_of::<Slot>(), Ordering::Relaxed);
            (0..slots).map(|_| Slot::new(ptr::null_mut())).collect()
        })
    }
}

/// The slots in which a key may be, the most likely one first.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "masked to the number of slots")]
fn probe(slots: &[Slot], hash: KeyHash) -> impl Iterator<Item = &Slot> {
    let mask = slots.len() - 1;
    let first = hash.0 as usize;
    (0..PROBES_MAX.min(slots.len())).map(move |step| &slots[first.wrapping_add(step) & mask])
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "pointers have 64 bits")]
fn tag(node: Node, hash: KeyHash) -> *mut u8 {
    node.address().map_addr(|address| {
        assert!(address >> ADDRESS_BITS == 0, "addresses of processes have 48 bits");
        address | (hash.0 >> ADDRESS_BITS << ADDRESS_BITS) as usize
    })
}

#[inline]
#[expect(unsafe_code, reason = "a slot keeps a node as its address, with a tag")]
fn node(tagged: *mut u8) -> Node {
    let address = tagged.map_addr(|address| address & ((1 << ADDRESS_BITS) - 1));
    // SAFETY: what is in a slot was made by `tag` of a node of the list that this index belongs to, and lives with.
    unsafe { Node::from_address(address) }
}

#[inline]
fn is_tagged(tagged: *mut u8, hash: KeyHash) -> bool {
    tagged.addr() as u64 >> ADDRESS_BITS == hash.0 >> ADDRESS_BITS
}
