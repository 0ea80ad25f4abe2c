//! The threads that serve connections. Each has a single-threaded runtime, so that a call never moves from one thread to another: the
//! connection, its calls and their timers share a thread, need no wake-ups across threads, and stay in one core's cache.
//!
//! Connections are given to the threads in turn. What must go on when a connection ends, and everything that lives as long as the node, runs
//! on the main runtime and not here. In a cluster that is a lot: there the two share the cores ([`Threads`]). More threads than cores made
//! writes and reads of three nodes a third slower (`benches/README.md`).

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

/// How many threads do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Threads {
    /// Of the main runtime.
    pub(super) main: usize,
    /// That serve connections.
    pub(super) serving: usize,
}

impl Threads {
    /// For a node on this machine.
    pub(super) fn new(in_cluster: bool) -> Self {
        Self::on(thread::available_parallelism().map_or(1, std::num::NonZero::get), in_cluster)
    }

    fn on(cores: usize, in_cluster: bool) -> Self {
        if in_cluster {
            let main = (cores / 2).max(1);
            Self { main, serving: (cores - main).max(1) }
        } else {
            Self { main: cores, serving: cores }
        }
    }
}

impl Workers {
    /// Starts `count` of them.
    pub(super) fn start(count: usize) -> io::Result<Self> {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, sync_channel};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_cluster_shares_the_cores() {
        let threads = |cores, in_cluster| {
            let Threads { main, serving } = Threads::on(cores, in_cluster);
            (main, serving)
        };
        assert_eq!(threads(1, true), (1, 1));
        assert_eq!(threads(2, true), (1, 1));
        assert_eq!(threads(7, true), (3, 4));
        assert_eq!(threads(7, false), (7, 7));
    }

    #[test]
    fn work_stays_on_its_thread_and_ends_with_it() {
        let workers = Workers::start(3).expect("the system has threads");
        let (told, tells) = sync_channel(2 * workers.handles().len());
        for handle in workers.handles() {
            let told = told.clone();
            handle.spawn(async move {
                let before = thread::current().id();
                tokio::time::sleep(Duration::from_millis(1)).await;
                told.send((before, thread::current().id())).expect("somebody listens");
                // Never ends by itself; holds its end of the channel until then.
                std::future::pending::<()>().await;
                drop(told);
            });
        }
        drop(told);
        let mut threads = Vec::new();
        for _ in workers.handles() {
            let (before, after) = tells.recv_timeout(Duration::from_secs(20)).expect("it runs");
            assert_eq!(before, after);
            assert!(!threads.contains(&before), "each has a thread of its own");
            threads.push(before);
        }
        workers.stop();
        // Nothing is told twice, and nobody is left to tell.
        let cut_off = tells.recv_timeout(Duration::from_secs(20));
        assert_eq!(cut_off, Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn connections_are_given_out_in_turn() {
        let workers = Workers::start(3).expect("the system has threads");
        let count = workers.handles().len();
        let turns: Vec<usize> = (0..2 * count).map(|_| workers.next()).collect();
        assert_eq!(turns[..count], turns[count..]);
        assert_eq!(turns[..count], (0..count).collect::<Vec<_>>());
    }
}
