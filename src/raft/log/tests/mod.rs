//! The log of a node as its callers see it. One file for each property; here is what they share.

mod conformance;
mod machine;

use super::*;
use crate::util::fs::sim::SimFileSystem;

const DIR: &str = "/log";

/// Small segments and a small cache, so that a short story has many of the one and reads past the other.
fn small(salt_seed: u64) -> LogOptions {
    LogOptions {
        segment_bytes: 4 << 10,
        buffer_bytes_max: 16 << 10,
        cache_bytes: 4 << 10,
        background: Background::Caller,
        salt_seed,
    }
}

fn open(fs: &SimFileSystem) -> io::Result<LogStore> {
    LogStore::open(Arc::new(fs.clone()), PathBuf::from(DIR), small(1))
}
