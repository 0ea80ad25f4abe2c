//! Memory for the nodes of a memtable: given out from the front of large chunks, never moved, given back all at once.
//!
//! A search in a large list jumps from page to page. Chunks of 2 MiB and more are mapped so that the kernel may use pages
//! of that size, which spares most of those jumps a miss of the TLB.

#![expect(unsafe_code, reason = "a raw pointer into memory that the arena owns, and a mapping")]

use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Size of the first chunk; each further one has twice the size of the one before.
const CHUNK_BYTES_MIN: usize = 256 << 10;

/// Largest size of a chunk that is shared by nodes.
const CHUNK_BYTES_MAX: usize = 16 << 20;

/// Nodes are aligned to this.
const WORD_BYTES: usize = size_of::<u64>();

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Arena {
    /// Only kept: what is in them is reached by the pointers that were given out.
    chunks: Vec<Chunk>,
    /// What is left of the last shared chunk.
    next: Option<*mut u64>,
    left_words: usize,
    /// Size of the last shared chunk.
    chunk_bytes: usize,
    /// Of all chunks.
    bytes: usize,
    /// Given out.
    used_bytes: usize,
}

// SAFETY: the pointer leads into the heap memory of `chunks`, which moves with the arena.
unsafe impl Send for Arena {}

impl Arena {
    /// `bytes` of memory that nobody else has, aligned to eight bytes, valid as long as the arena is. Its content is
    /// unspecified but initialised.
    pub(super) fn allocate(&mut self, bytes: usize) -> *mut u8 {
        let words = bytes.div_ceil(WORD_BYTES);
        self.used_bytes += words * WORD_BYTES;
        if words > self.left_words {
            // A large node gets a chunk of its own, so that the rest of the shared one is not lost.
            if words * WORD_BYTES > self.next_chunk_bytes() / 4 {
                return self.add_chunk(words).cast();
            }
            self.chunk_bytes = self.next_chunk_bytes();
            let chunk_words = self.chunk_bytes / WORD_BYTES;
            self.next = Some(self.add_chunk(chunk_words));
            self.left_words = chunk_words;
        }
        let start = self.next.expect("there is a chunk when words are left");
        self.left_words -= words;
        // SAFETY: `left_words` words lay behind `start`, so that the sum is within the chunk or at its end.
        self.next = Some(unsafe { start.add(words) });
        start.cast()
    }

    /// Bytes taken from the allocator.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes given out.
    pub(super) const fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    fn next_chunk_bytes(&self) -> usize {
        (self.chunk_bytes * 2).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
    }

    fn add_chunk(&mut self, words: usize) -> *mut u64 {
        let mut chunk = Chunk::new(words);
        let start = chunk.start();
        self.bytes += words * WORD_BYTES;
        self.chunks.push(chunk);
        start
    }
}

/// Size and alignment of a huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Zeroed memory.
#[derive(Debug)]
enum Chunk {
    Heap(Vec<u64>),
    Mapped(Mapping),
}

impl Chunk {
    fn new(words: usize) -> Self {
        let mapped = (words * WORD_BYTES >= HUGE_PAGE_BYTES && !cfg!(miri))
            .then(|| Mapping::new(words * WORD_BYTES).ok())
            .flatten();
        mapped.map_or_else(|| Self::Heap(vec![0; words]), Self::Mapped)
    }

    fn start(&mut self) -> *mut u64 {
        match self {
            Self::Heap(words) => words.as_mut_ptr(),
            Self::Mapped(mapping) => mapping.start.as_ptr(),
        }
    }
}

/// Anonymous memory, unmapped when it is dropped.
#[derive(Debug)]
struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
    /// The first border of a huge page in it.
    start: NonNull<u64>,
}

impl Mapping {
    /// At least `wanted` zeroed bytes from `start` on.
    fn new(wanted: usize) -> rustix::io::Result<Self> {
        let bytes = wanted.next_multiple_of(HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES;
        // SAFETY: a new mapping at a place that the kernel chooses touches no memory that is in use.
        let address = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let address = NonNull::new(address.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM)?;
        let skip = address.align_offset(HUGE_PAGE_BYTES);
        // SAFETY: the mapping has one huge page more than is wanted, so that the next border lies in it.
        let start = unsafe { address.add(skip) };
        // SAFETY: the range lies in the mapping; the advice changes no content. Where the kernel does not take it, pages
        // are small.
        let _ = unsafe {
            madvise(start.as_ptr().cast(), bytes - HUGE_PAGE_BYTES, Advice::LinuxHugepage)
        };
        Ok(Self { address, bytes, start: start.cast() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new`, and whoever got a pointer into it has let the arena go.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}
