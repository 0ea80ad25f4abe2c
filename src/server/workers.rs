//! The threads that serve connections. Each has a single-threaded runtime, so that a call never moves from one thread to another: the
//! connection, its calls and their timers share a thread, need no wake-ups across threads, and stay in one core's cache.
//!
//! Connections are given to the threads in turn. What must go on when a connection ends, and everything that lives as long as the node, runs
//! on the main runtime and not here.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Threads that serve. Dropped, they end without waiting for what they serve.
pub(super) struct Workers {
    handles: Vec<Handle>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopping: CancellationToken,
    next: AtomicUsize,
}

impl Workers {
    /// Starts one for each core.
    pub(super) fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut workers = Self {
            handles: Vec::with_capacity(count),
            threads: Mutex::default(),
            stopping: CancellationToken::new(),
            next: AtomicUsize::new(0),
        };
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            workers.handles.push(runtime.handle().clone());
            let stopping = workers.stopping.clone();
            let run = move || {
                runtime.block_on(stopping.cancelled());
                // A read that blocks on a disk must not hold back the end of the node.
                runtime.shutdown_background();
            };
            let named = thread::Builder::new().name(format!("serve-{number}"));
            workers.threads.get_mut().push(named.spawn(run)?);
        }
        Ok(workers)
    }

    /// The runtimes, in order.
    pub(super) fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// Whose turn it is.
    pub(super) fn next(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len()
    }

    /// Ends the threads; what they still serve is cut off. Blocks for a moment.
    pub(super) fn stop(&self) {
        self.stopping.cancel();
        for thread in self.threads.lock().drain(..) {
            // A panic was reported by its hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}
