//! Memory for the nodes of a memtable: given out from the front of large chunks, never moved, given back all at once.

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
    chunks: Vec<Vec<u64>>,
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
#[expect(unsafe_code, reason = "a raw pointer into memory that the arena owns")]
unsafe impl Send for Arena {}

impl Arena {
    /// `bytes` of memory that nobody else has, aligned to eight bytes, valid as long as the arena is. Its content is
    /// unspecified but initialised.
    #[expect(unsafe_code, reason = "pointer arithmetic within a chunk")]
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
        // Zeroed by the operating system, page by page, when it is touched.
        let mut chunk = vec![0u64; words];
        let start = chunk.as_mut_ptr();
        self.bytes += words * WORD_BYTES;
        self.chunks.push(chunk);
        start
    }
}
