//! The log of a node as its callers see it. One file for each property; here is what they share.

mod callbacks;
mod conformance;
mod crash;
mod damage;
mod faults;
mod machine;
mod model;
mod segments;
mod workload;

use std::future::Future;

use openraft::storage::{RaftLogReader, RaftLogStorage};

pub(in crate::raft) use self::workload::entry;
pub(super) use self::workload::{append, id, now};
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

/// A log with room, and entries in memory up to `cache_bytes`.
pub(super) fn opened(fs: &SimFileSystem, cache_bytes: usize) -> LogStore {
    let (segment_bytes, buffer_bytes_max) = (1 << 20, 1 << 20);
    let options = LogOptions { segment_bytes, buffer_bytes_max, cache_bytes, ..small(1) };
    LogStore::open(Arc::new(fs.clone()), PathBuf::from(DIR), options).expect("opened")
}

/// Waits for a call of the log, as a runtime would: by syncing until it is answered.
fn done<T>(store: &LogStore, call: impl Future<Output = T>) -> T {
    let mut call: std::pin::Pin<Box<dyn Future<Output = T> + '_>> = Box::pin(call);
    loop {
        if let Some(outcome) = workload::poll(&mut call) {
            return outcome;
        }
        assert!(store.drive(), "nobody will ever answer");
    }
}

/// Entries with values of 100 bytes, appended and durable.
fn filled(store: &LogStore, group: GroupId, indexes: std::ops::Range<u64>) -> GroupLog {
    let log = store.group(group);
    for index in indexes {
        let flushed = append(&log, vec![entry(1, index, 100)]).expect("appended");
        done(store, flushed).expect("durable");
    }
    log
}
