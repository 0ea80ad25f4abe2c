//! The seam between async code and calls that block: storage engines and files.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

/// Runs `work`, which may block. On a runtime of several threads the tasks that wait behind this one go on elsewhere; on one of a single
/// thread, which is that of simulations, and on a thread of nobody's it is just called.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => block_in_place(work),
        _ => work(),
    }
}
