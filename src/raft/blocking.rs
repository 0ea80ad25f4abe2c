//! How async code does something that may wait for the disk.
//!
//! openraft calls storage from async tasks, and storage here is synchronous. A read that is not in memory takes the thread
//! for as long as the disk takes; the other tasks of that worker must not wait with it, least of all those that send
//! heartbeats. tokio moves them to another thread ([`block_in_place`]), which costs some microseconds: so this is for
//! what touches the disk, not for what is in memory. On a runtime of one thread (simulations) there is no other thread
//! and nobody to be kept waiting: the work is simply done, at the same point of every run with the same seed.
//!
//! Callers: the log and the state machine. What is synced is never waited for so, but by callback (`log/`).

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

/// Does `work`, which may wait for the disk, without keeping other tasks from running.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_on_any_runtime_and_without_one() {
        assert_eq!(blocking(|| 1), 1);
        let one = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        assert_eq!(one.block_on(async { blocking(|| 2) }), 2);
    }

    #[test]
    fn other_tasks_run_while_work_waits() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).build().expect("a runtime");
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let waits = runtime.spawn(async move {
            // Runs on the one worker, and only once that is free again.
            tokio::spawn(async move { send.send(3).expect("somebody waits") });
            blocking(|| receive.recv().expect("it was sent"))
        });
        assert_eq!(runtime.block_on(waits).expect("no panic"), 3);
    }
}
