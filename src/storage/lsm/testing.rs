//! What tests of this module share: a count of what the calling thread allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What was allocated by one thread while something ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Allocations {
    /// Calls of the allocator that asked for memory.
    pub(crate) count: usize,
    /// Bytes in all, given back or not.
    pub(crate) bytes: usize,
    /// The largest single one, in bytes.
    pub(crate) largest_bytes: usize,
}

/// Runs `what` and says what it allocated on this thread.
pub(crate) fn allocations<R>(what: impl FnOnce() -> R) -> (R, Allocations) {
    COUNTED.set(Allocations::default());
    let result = what();
    (result, COUNTED.get())
}

thread_local! {
    static COUNTED: Cell<Allocations> = const {
        Cell::new(Allocations { count: 0, bytes: 0, largest_bytes: 0 })
    };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn note(bytes: usize) {
    // Not while the thread ends: its counter may be gone.
    let _ = COUNTED.try_with(|counted| {
        let mut so_far = counted.get();
        so_far.count += 1;
        so_far.bytes += bytes;
        so_far.largest_bytes = so_far.largest_bytes.max(bytes);
        counted.set(so_far);
    });
}

#[expect(unsafe_code, reason = "an allocator that counts; only in tests")]
// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
