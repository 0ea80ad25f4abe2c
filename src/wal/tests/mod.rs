//! The log as its callers see it. One file for each property; here is what they share: a small log on the simulated
//! disk, and what a visitor saw.

mod contract;
mod crash;
mod damage;
mod faults;
mod model;
mod threads;
mod workload;

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::util::fs::sim::SimFileSystem;
use crate::util::fs::{FileSystem, RealFileSystem};

const DIR: &str = "/log";

/// The smallest segments, so that a short story has many.
fn small(salt_seed: u64) -> Options {
    Options {
        segment_bytes: SEGMENT_BYTES_MIN,
        buffer_bytes_max: 4 << 10,
        callbacks_max: 8,
        background: Background::Caller,
        ..Options::new(salt_seed)
    }
}

/// A record with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    position: Position,
    owner: Owner,
    kind: Kind,
    body: Vec<u8>,
}

impl From<RecordRef<'_>> for Seen {
    fn from(record: RecordRef<'_>) -> Self {
        let RecordRef { position, owner, kind, body } = record;
        Self { position, owner, kind, body: body.to_vec() }
    }
}

struct Opened {
    wal: Wal,
    recovery: Recovery,
    seen: Vec<Seen>,
}

fn open_with(fs: Arc<dyn FileSystem>, dir: &Path, options: Options) -> Result<Opened> {
    let mut seen = Vec::new();
    let (wal, recovery) = Wal::open(fs, dir, options, |record| {
        seen.push(Seen::from(record));
        Ok::<_, Error>(())
    })?;
    assert_eq!(recovery.records, seen.len() as u64);
    assert!(seen.is_sorted_by_key(|seen| seen.position));
    Ok(Opened { wal, recovery, seen })
}

fn open(fs: &SimFileSystem, salt_seed: u64) -> Result<Opened> {
    open_with(Arc::new(fs.clone()), Path::new(DIR), small(salt_seed))
}

fn reopen(fs: &SimFileSystem) -> Opened {
    open(fs, 1000).expect("the log opens")
}

const ONE: Owner = Owner(1);
const TWO: Owner = Owner(2);

fn append(wal: &Wal, owner: Owner, body: &[u8]) -> Position {
    wal.append(owner, Kind::FIRST, &[body]).expect("appended")
}

fn bodies(seen: &[Seen]) -> Vec<&[u8]> {
    seen.iter().map(|seen| seen.body.as_slice()).collect()
}

/// The segments in the directory, oldest first.
fn segment_files(fs: &SimFileSystem) -> Vec<std::path::PathBuf> {
    let names = fs.list(Path::new(DIR)).expect("listed");
    let names = names.into_iter().filter(|name| segment::segment_number(name).is_some());
    names.map(|name| Path::new(DIR).join(name)).collect()
}
